"""Contract: the processes of a command end together, with one status, within seconds. The one that meets an error
says why, once, with its rank and its machine's name; what others meet in turn, a closed connection, is not told.
That holds before they are connected, where they wait in a collective, and where one of them cannot be interrupted; a
process that was killed is told by those that are left. Runs whose machines have other files are refused with the first
row that differs.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from support import images
from support.main_of import python_path
from torch.distributed import TCPStore

from hf_deit import InputError
from hf_deit.commands import command_line, companions, prepare
from hf_deit.commands.companions import Companions, EndedElsewhere, Ending
from hf_deit.errors import PublishError
from hf_deit.recipes.resolve import resolve_arguments, resolved_recipe
from hf_deit.recipes.sameness import stated_options
from hf_deit.training import processes
from hf_deit.training.alike import Stated

HOST = socket.gethostname()
# Each process of each case is forked from one that has imported everything; what they print and how they end is told.
FORKED = """
import json, os, signal, sys, time
import torch
from hf_deit import InputError
from hf_deit.commands import command_line, companions
from hf_deit.commands.command_line import exit_command, run_command
from hf_deit.commands.train import main

command_line._PATIENCE, companions._SECONDS_TO_UNWIND = 1.5, 3.0
# All come in time, also on a busy machine.
companions._SECONDS_TO_TRY = companions._SECONDS_TO_SPEAK = companions._SECONDS_TO_END = 30.0

def wait_for_others(arguments):
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    while True:
        torch.distributed.all_reduce(torch.ones(4))

def fail(arguments):
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    time.sleep(0.5)
    raise InputError("cat.png cannot be decoded")

def do_not_hear(arguments):  # as in a kernel that waits for what does not come
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
    wait_for_others(arguments)

def fail_early(arguments):
    raise FileNotFoundError(2, "No such file", "early.yaml")

def die(arguments):
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)

folder, ports = sys.argv[1], json.loads(sys.argv[2])
run = ["--recipe", "debug", "--distillation_type", "none", "--max_steps", "2", "--use_cpu", "true"]
run += ["--train_dir", "train", "--validation_dir", "train", "--output_dir", os.path.join(folder, "run")]
CASES = {
    "met": [(wait_for_others, []), (fail, []), (do_not_hear, [])],
    "early": [(wait_for_others, []), (fail_early, [])],
    "killed": [(die, []), (wait_for_others, [])],
    "files": [(main, run), (main, run)],
}
children = {}
for (case, ranks), port in zip(CASES.items(), ports):
    for rank, (function, arguments) in enumerate(ranks):
        if (child := os.fork()) == 0:
            signal.alarm(100)  # whoever hangs is ended
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(len(ranks)), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os.chdir(os.path.join(folder, str(rank)))
            os.dup2(os.open(os.path.join(folder, f"{case}-{rank}"), os.O_WRONLY | os.O_CREAT), 2)
            exit_command(main(arguments) if function is main else run_command(function, arguments))
        children[child] = f"{case}-{rank}"
begin, ended = time.time(), {}
for _ in range(len(children)):
    child, status = os.wait()
    ended[children[child]] = [os.waitstatus_to_exitcode(status), time.time() - begin]
print(json.dumps(ended))
"""


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, tuple[int, float, str]]:
    """Of each process its status, after how many seconds it ended, and what it said."""
    folder = tmp_path_factory.mktemp("companions")
    for rank in range(3):
        images.class_folders(folder / str(rank) / "train", {"cat": 12, "dog": 12})
    next((folder / "1" / "train" / "cat").iterdir()).unlink()
    (folder / "forked.py").write_text(FORKED)
    line = [sys.executable, folder / "forked.py", folder, json.dumps(free_ports(4))]
    environment = {**os.environ, "PYTHONPATH": python_path(), "HF_DEIT_TRACEBACK": "0"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return {name: (*values, (folder / name).read_text()) for name, values in told.items()}


def outputs(ended: dict[str, tuple[int, float, str]], case: str) -> tuple[list[int], str]:
    """The statuses of a case's processes and all that they said; none took longer than a loaded machine makes it."""
    of_case = [ended[name] for name in sorted(ended) if name.startswith(case)]
    assert max(seconds for _, seconds, _ in of_case) < 90
    return [status for status, _, _ in of_case], "".join(said for *_, said in of_case)


def test_the_process_that_meets_an_error_says_why_and_all_end_with_its_status(ended):
    """One waits in a collective, another does not hear of it there."""
    statuses, said = outputs(ended, "met")
    assert statuses == [2, 2, 2]
    assert said == f"\nerror in process 1 on {HOST}: cat.png cannot be decoded\n"


def test_an_error_before_the_processes_are_connected_ends_those_that_wait_for_it(ended):
    statuses, said = outputs(ended, "early")
    assert statuses == [70, 70]
    assert re.fullmatch(rf"\nerror in process 1 on {HOST}: FileNotFoundError: .*early.yaml.* \(this was .*\)\n", said)


def test_a_process_that_was_killed_is_told_by_those_that_are_left(ended):
    statuses, said = outputs(ended, "killed")
    assert statuses == [-signal.SIGKILL, 70]
    assert said.count("error") == said.count(f"error in process 1 on {HOST}: another process of this run") == 1
    assert "Connection closed" not in said and "Traceback" not in said


def test_a_run_whose_machines_have_other_images_is_refused_with_the_first_row(ended):
    statuses, said = outputs(ended, "files")
    assert statuses == [2, 2] and said.count("error") == 1
    assert f"rows is 24 in process 0 on {HOST}, 23 in process 1 on {HOST}; the first row that differs is" in said


# The parts, in one process


@pytest.fixture
def process(monkeypatch):
    """A process of several, by its rank; the store of all is that of the test."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(companions, "_SECONDS_TO_END", 0.2)
    monkeypatch.setattr(companions, "_SECONDS_TO_SPEAK", 0.2)

    def of_rank(rank: int) -> Companions:
        monkeypatch.setenv("RANK", str(rank))
        others = Companions()
        others._connect()
        others._has_tried.set()
        return others

    yield of_rank
    del store


def test_of_several_errors_the_first_is_told(process):
    first, second, third = map(process, range(3))
    assert first.ended_by_another(0.0, is_cut_off=False) is None  # it is to speak
    assert second.ended_by_another(0.0, is_cut_off=False) is None  # the one that is to speak did not, in time
    first.tell(70)
    ending = Ending(70, 0, HOST)
    assert second.ended_by_another(0.0, is_cut_off=False) == third.ended_by_another(5.0, is_cut_off=True) == ending


def test_what_a_process_is_about_is_interrupted_soon_after_another_has_told_of_its_end(process, monkeypatch):
    monkeypatch.setattr(companions, "_SECONDS_BETWEEN_LOOKS", 0.05)
    other, this = process(1), process(0)
    threading.Timer(0.2, lambda: other.tell(3)).start()
    before = signal.getsignal(signal.SIGURG)
    with this.watched():
        with pytest.raises(EndedElsewhere):
            time.sleep(30)
        assert this.ended_by_another(0.0, is_cut_off=False) == Ending(3, 1, HOST)
    assert signal.getsignal(signal.SIGURG) == before


def test_of_an_error_that_all_raise_the_process_that_has_met_it_says_why(process, monkeypatch, capsys):
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(num_processes=3, process_index=0))
    monkeypatch.setattr(processes, "gather_object", lambda own: [*own, InputError("of one"), InputError("of two")])
    with pytest.raises(InputError, match="of one") as raised:
        processes.on_every_process(lambda: None)
    assert raised.value.met_by == 1
    monkeypatch.setattr(command_line, "_PATIENCE", 30.0)
    others = [process(0), process(1)]
    waiting = threading.Thread(target=lambda: command_line._end(raised.value, [], others[0], ""))
    waiting.start()
    time.sleep(0.1)
    assert command_line._end(raised.value, [], others[1], "") == 2
    waiting.join()
    assert capsys.readouterr().err == f"\nerror in process 1 on {HOST}: of one\n"


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_command_in_another_thread_ends_likewise(monkeypatch, capsys, number):
    for name, value in {"RANK": "0", "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    statuses = []

    def refuse(arguments):
        raise InputError("of a thread")

    thread = threading.Thread(target=lambda: statuses.append(command_line.run_command(refuse, [])))
    thread.start()
    thread.join()
    assert statuses == [2] and capsys.readouterr().err.count("of a thread") == 1


def test_what_was_told_of_one_command_does_not_end_the_next(process, monkeypatch):
    process(1).tell(2)
    monkeypatch.setattr(companions, "_commands", companions._commands + 1)
    assert process(0)._ending() is None


def test_one_process_and_one_without_a_store_end_by_themselves(monkeypatch):
    alone = Companions()
    with alone.watched():
        assert alone.ended_by_another(5.0, is_cut_off=False) is None and not alone.must_be_spoken_for
    alone.tell(2)
    monkeypatch.setattr(companions, "_SECONDS_TO_TRY", 0.1)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_ports(1)[0]))
    early = Companions()
    with early.watched():
        assert early.ended_by_another(0.0, is_cut_off=False) is None
    assert early.must_be_spoken_for and not early.are_reached


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[pair.cc:553] Connection closed by peer [10.0.0.2]:4020"), True),
        (RuntimeError("NCCL error: ncclRemoteError: remote process exited"), True),
        (torch.distributed.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed"), True),
        (ConnectionResetError(104, "Connection reset by peer"), False),  # of a server, such as the Hub
        (PublishError("could not push: Connection reset by peer"), False),
        (RuntimeError("shape '[3]' is invalid"), False),
    ],
)
def test_errors_that_say_that_another_process_is_gone(process, error, expected):
    assert process(0).are_gone(error) is expected
    wrapped = ValueError("could not gather")
    wrapped.__cause__ = error
    assert process(0).are_gone(wrapped) is expected


def test_idle_looks_cost_nothing_that_can_be_measured(process):
    this = process(0)
    begin = time.process_time()
    for _ in range(20):
        assert this._ending() is None
    assert (time.process_time() - begin) / 20 < 0.01  # of which there are two a second


def test_options_that_differ_between_processes_are_named(monkeypatch, tmp_path):
    line = ["--recipe", "debug", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    first, other = (resolve_arguments([*line, *more]) for more in ([], ["--seed", "7"]))
    stated = [Stated(0, "a", None)]

    def by_both(value):
        stated[:] = [stated[-1]._replace(rank=0, host="a"), Stated(1, "b", value)]
        return stated

    monkeypatch.setattr(prepare, "stated_by_all", by_both)
    prepare.check_same_arguments(first)  # one process
    monkeypatch.setattr(prepare, "PartialState", lambda: SimpleNamespace(num_processes=2))
    stated[:] = [Stated(0, "a", stated_options(resolved_recipe(first), first.training))]
    prepare.check_same_arguments(first)
    with pytest.raises(
        InputError, match=r"process 0 on a has seed 42, data_seed 42, process 1 on b has seed 7, data_"
    ):
        prepare.check_same_arguments(other)
