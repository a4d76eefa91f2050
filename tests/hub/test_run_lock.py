"""Contract: of the runs in a folder one goes on. A lock is kept while its process lives, and hinders nobody after."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.lock_holder import LockHolder

from hf_deit.errors import CheckpointError, InputError
from hf_deit.hub import process_identity, run_lock
from hf_deit.hub.process_identity import began_at, this_machine
from hf_deit.hub.run_lock import LOCK_FILE, check_held, hold, is_lock_file


@pytest.fixture(scope="module")
def processes():
    """Those that live: a test may kill some."""
    living: list[LockHolder] = []
    yield living
    for process in living:
        process.end()


@pytest.fixture
def others(processes):
    """Gives so many other processes."""

    def give(number: int = 1) -> list[LockHolder]:
        processes.extend(LockHolder() for _ in range(number - len(processes)))
        return processes[:number]

    yield give
    for process in [*processes]:
        if process.process.poll() is not None:
            process.end()
            processes.remove(process)
        elif process.holds:
            process.process.send_signal(signal.SIGCONT)
            process.release()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def locks(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if is_lock_file(name))


def lock_of(folder: Path, **changes: object) -> bytes:
    """The content of a lock of this process, but for some values."""
    with hold(folder):
        return json.dumps({**json.loads((folder / LOCK_FILE).read_bytes()), **changes}).encode()


def put(folder: Path, content: bytes, age: float = 0) -> Path:
    path = folder / LOCK_FILE
    path.write_bytes(content)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


ELSEWHERE = {"host": "node-7", "machine": "node-7 another", "pid": 1}


def test_of_processes_that_begin_at_once_one_goes_on(others, tmp_path):
    """Also where all of them find a lock whose process is gone, or several."""
    gone = lock_of(tmp_path, began="0")
    processes = others(3)
    for turn in range(12):
        folder = tmp_path / str(turn)
        if turn % 3:
            folder.mkdir()
            put(folder, gone)
        moment = time.time() + 0.02
        for process in processes:
            process.tell(f"{folder} {moment}")
        answers = [process.answer() for process in processes]
        assert sorted(answer.split()[0] for answer in answers) == ["holds", "refused", "refused"], answers
        winner = next(place for place, answer in enumerate(answers) if answer == "holds")
        assert all(f"process {processes[winner].process.pid} on" in a for a in answers if a != "holds")
        with pytest.raises(InputError), hold(folder):
            pass
        assert locks(folder) == [LOCK_FILE]
        processes[winner].release()
        assert locks(folder) == []


@pytest.mark.parametrize("then", ["holds", "released", "killed"])
@pytest.mark.parametrize("when", ["_write_own", "_wait_until_gone", "_put"])
def test_what_another_process_does_at_the_worst_moment_is_not_undone(others, folder, monkeypatch, when, then):
    """Between two steps of this one, which has found a lock whose process is gone."""
    put(folder, lock_of(folder, began="0"))
    [other] = others()
    owner = run_lock if when == "_put" else run_lock.RunLock
    step, has_come = getattr(owner, when), []

    def interrupted(*arguments: object) -> object:
        result = None if when == "_put" else step(*arguments)
        if not has_come:
            has_come.append(other.take(folder))
            if then == "released":
                other.release()
            elif then == "killed":
                other.process.kill()
                other.process.wait()
        return step(*arguments) if when == "_put" else result

    monkeypatch.setattr(owner, when, interrupted)
    if then == "holds":
        before = (folder / LOCK_FILE).read_bytes()
        with pytest.raises(InputError, match=f"process {other.process.pid} on"), hold(folder):
            pass
        assert (folder / LOCK_FILE).read_bytes() != before and locks(folder) == [LOCK_FILE]
    else:
        with hold(folder):
            assert locks(folder) == [LOCK_FILE]
            assert json.loads((folder / LOCK_FILE).read_bytes())["pid"] == os.getpid()
        assert locks(folder) == []
    assert has_come == ["holds"]


def test_a_line_of_locks_whose_processes_are_gone_ends(folder):
    """As of processes that were killed before they had moved to the front."""
    for number in range(3):
        last = run_lock.RunLock(str(folder))._last()
        path = LOCK_FILE if last is None else last.successor
        (folder / path).write_bytes(lock_of(folder.parent, began="0", token=str(number)))
    assert len(locks(folder)) == 3
    with hold(folder):
        assert locks(folder) == [LOCK_FILE]


def test_a_process_that_lives_keeps_its_lock_also_while_it_is_stopped(others, folder):
    [other] = others()
    assert other.take(folder) == "holds"
    before = (folder / LOCK_FILE).read_bytes()
    os.utime(folder / LOCK_FILE, (0, 0))  # it has not been heard of for long
    for stop in (False, True):
        if stop:
            other.process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(InputError, match=r"process \d+ on .*, '-c', since 20") as refused, hold(folder):
            pass
        assert str(other.process.pid) in str(refused.value) and "--output_dir" in str(refused.value)
        assert time.monotonic() - start < 1
    assert (folder / LOCK_FILE).read_bytes() == before and locks(folder) == [LOCK_FILE]


def test_the_lock_of_a_process_that_was_killed_is_taken_at_once(others, folder):
    [one, other] = others(2)
    assert one.take(folder) == "holds"
    one.process.kill()  # nobody waits for it: it is a zombie
    while ") Z " not in Path(f"/proc/{one.process.pid}/stat").read_text():
        time.sleep(0.01)
    assert other.take(folder) == "holds"
    assert locks(folder) == [LOCK_FILE]
    other.process.kill()
    other.process.wait()
    with hold(folder):
        assert locks(folder) == [LOCK_FILE]
    assert locks(folder) == []


def test_another_process_with_the_same_number_is_another(folder):
    path = put(folder, lock_of(folder, pid=os.getppid(), began="1"))
    with hold(folder):
        assert json.loads(path.read_bytes())["pid"] == os.getpid()


def test_what_this_process_left_behind_is_taken(folder):
    put(folder, lock_of(folder, token="of the program that it was before exec"))
    with hold(folder):
        assert locks(folder) == [LOCK_FILE]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "SILENT_SECONDS", 0.4)
    monkeypatch.setattr(run_lock, "_LOOK_SECONDS", 0.05)


def test_a_lock_of_another_machine_that_is_touched_is_kept(folder, quick):
    path = put(folder, lock_of(folder, **ELSEWHERE))
    has_ended = threading.Event()

    def touch() -> None:
        while not has_ended.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(InputError, match="process 1 on node-7"), hold(folder):
            pass
    finally:
        has_ended.set()
        thread.join()
    assert locks(folder) == [LOCK_FILE]


@pytest.mark.parametrize("content", [{"pid": 1}, None, b"", b"[1]", b"\xff"], ids=str)
def test_a_lock_of_another_machine_or_of_nobody_that_is_silent_is_taken(folder, quick, caplog, content):
    """At once where it has been silent for long, else when it has been."""
    gone = lock_of(folder, **ELSEWHERE) if content is None else content
    gone = lock_of(folder, **{**ELSEWHERE, **content}) if isinstance(content, dict) else gone
    for age in (3600, 0, -3600):  # the last one by a clock that was set back since
        path = put(folder, gone, age)
        start = time.monotonic()
        with hold(folder):
            assert json.loads(path.read_bytes())["pid"] == os.getpid()
        assert (time.monotonic() - start > 0.3) == (age <= 0)
        assert ("waiting for a sign" in caplog.text) == (age <= 0)
        assert locks(folder) == []


def test_it_is_touched_as_long_as_it_is_held(folder, quick):
    with hold(folder):
        for _ in range(2):
            os.utime(folder / LOCK_FILE, (0, 0))
            end = time.monotonic() + 10
            while os.stat(folder / LOCK_FILE).st_mtime == 0:
                assert time.monotonic() < end
                time.sleep(0.01)
    other = put(folder, b"another's")
    os.utime(other, (0, 0))
    time.sleep(0.2)
    assert os.stat(other).st_mtime == 0


def test_in_one_process_it_is_taken_once_and_by_one_thread(folder):
    refused = []

    def take() -> None:
        try:
            with hold(folder):
                pass
        except InputError as error:
            refused.append(error)

    with hold(folder), hold(folder / "teacher"), hold(str(folder)):
        assert locks(folder) == [LOCK_FILE] and not (folder / "teacher").exists()
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        assert len(refused) == 1
    assert locks(folder) == []
    with pytest.raises(ValueError), hold(folder):
        raise ValueError
    assert locks(folder) == []


def test_who_has_lost_the_folder_writes_no_more_and_gives_back_nothing(others, folder):
    with hold(folder):
        check_held(folder)
        (folder / LOCK_FILE).unlink()  # by someone who tidies up
        check_held(folder)
        assert locks(folder) == [LOCK_FILE]
        (folder / LOCK_FILE).unlink()
        [other] = others()
        assert other.take(folder) == "holds"
        with pytest.raises(CheckpointError, match=f"process {other.process.pid}"):
            check_held(folder)
        theirs = (folder / LOCK_FILE).read_bytes()
    assert (folder / LOCK_FILE).read_bytes() == theirs
    check_held(folder)  # it holds none


def test_what_is_left_by_processes_that_were_killed_while_they_took_it_goes(folder):
    gone = lock_of(folder, began="0")
    (folder / f"{LOCK_FILE}.0123.tmp").write_bytes(gone)
    (folder / f"{LOCK_FILE}.4567.tmp").write_bytes(gone[:20])
    os.utime(folder / f"{LOCK_FILE}.4567.tmp", (0, 0))
    last = folder / f"{LOCK_FILE}.89ab.tmp"
    last.write_bytes(b"")  # it may be writing it
    with hold(folder):
        assert locks(folder) == [LOCK_FILE, last.name]
    assert locks(folder) == [last.name]
    with hold(folder):
        os.utime(last, (0, 0))
    assert locks(folder) == []


@pytest.mark.parametrize("written", [0, 1, 20])
def test_what_a_killed_process_had_only_begun_to_write_goes_at_once(others, folder, written):
    """That of one that lives, or of another machine, does not."""
    [other] = others()
    own = run_lock.RunLock(str(folder))
    own.pid = other.process.pid
    path = Path(own._write_own())
    path.write_bytes(path.read_bytes()[:written])
    elsewhere = folder / path.name.replace(path.name.split(".")[3], "0123456789abcdef")
    elsewhere.write_bytes(b"")
    with hold(folder):
        assert locks(folder) == sorted([LOCK_FILE, path.name, elsewhere.name])
    other.process.kill()
    other.process.wait()
    with hold(folder):
        assert locks(folder) == sorted([LOCK_FILE, elsewhere.name])


@pytest.mark.parametrize("absent", ["/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"])
def test_containers_of_one_name_are_told_apart_by_what_there_is(monkeypatch, absent):
    """As of two that share a host's name and network, and where the system does not say when it began."""
    place, opened = ["pid:[1]"], open

    def read(path: str) -> str:
        if path == absent:
            raise FileNotFoundError(path)
        return place[0]

    def refuse(path: str, *args: object, **settings: object) -> object:
        read(path)
        return opened(path, *args, **settings)

    monkeypatch.setattr(os, "readlink", read)
    monkeypatch.setattr(process_identity, "open", refuse, raising=False)
    first = this_machine()
    assert this_machine() == first
    place[0] = "pid:[2]"
    assert (this_machine() == first) == (absent == "/proc/self/ns/pid")


def test_a_pipe_in_its_place_is_not_waited_for(folder):
    os.mkfifo(folder / LOCK_FILE)
    with pytest.raises(OSError, match="is no regular file"), hold(folder):
        pass


@pytest.mark.parametrize("program", ["/home/ada/bin/hf-deit", "/home/ada/hf-deit/__main__.py"])
def test_it_names_no_option_of_the_command(folder, monkeypatch, program):
    monkeypatch.setattr(sys, "argv", [program, "train", "--hub_token", "hf_secret"])
    with hold(folder):
        written = json.loads((folder / LOCK_FILE).read_bytes())
    assert written["command"] == "hf-deit train"
    assert "hf_secret" not in str(written) and "/home/ada" not in str(written)


def test_without_hard_links_it_is_taken_too(others, folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for content in (None, lock_of(folder, began="0")):
        if content is not None:
            put(folder, content)
        with hold(folder):
            assert locks(folder) == [LOCK_FILE]
            [other] = others()
            assert other.take(folder).startswith("refused")
        assert locks(folder) == []


def test_a_process_is_not_gone_as_long_as_it_has_a_thread():
    """As while one is being killed that still writes: its first thread looks like one of a process that has ended."""
    program = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("begins to end", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            while ") Z " not in Path(f"/proc/{process.pid}/stat").read_text():
                time.sleep(0.01)
            assert began_at(process.pid) is None
        finally:
            process.kill()
        process.stdout.close()
    assert began_at(process.pid) == ""
