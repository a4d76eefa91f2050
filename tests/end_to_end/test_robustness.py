"""A run that is killed again and again, and each time goes on, ends as if nothing had happened.

Weights, average, optimizer, schedule, random numbers, losses and metrics are the same bit for bit, with the full
recipe, of one process and of two.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.main_of import python_path

from hf_deit.hub.checksums import read_checksums
from hf_deit.training.checkpoints import check_unchanged

STEPS, SAVE_STEPS, KILLS = 200, 5, 10

# Importing takes longer than the runs: this process imports once, and forks every attempt of a run.
DRIVER = """
import functools, gc, json, mmap, os, random, signal, socket, struct, sys, threading, time, traceback
from pathlib import Path

folder, world_size, steps, save_steps, kills = Path(sys.argv[1]), *map(int, sys.argv[2:])
import conftest, torch
from support import tiny
from tqdm import tqdm
from transformers import TrainerCallback
from hf_deit import load_teacher
from hf_deit.hub.run_folder import is_whole, last_whole_checkpoint

# tqdm's own lock is shared with the children: one that is killed while it holds it would stop all later ones.
tqdm.set_lock(threading.RLock())
torch.set_num_threads(1)
tiny.digits = functools.cache(tiny.digits)
tiny.digits()
gc.freeze()
counter = mmap.mmap(-1, 8)  # the steps that are done, shared with the children


class Count(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        torch.manual_seed(args.process_index)  # so that every process must get its own random numbers back

    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == 0:
            counter[:] = struct.pack("q", state.global_step)


def train(run):
    teacher = load_teacher(str(folder / "teacher"), student_processor=tiny.processor())
    args = tiny.arguments(
        run, max_steps=steps, warmup_steps=20, per_device_train_batch_size=4 // world_size,
        gradient_accumulation_steps=2, save_strategy="steps", save_steps=save_steps, save_total_limit=2,
        logging_steps=save_steps, eval_strategy="steps", eval_steps=8 * save_steps, ema_decay=0.9, mixup=0.8,
        cutmix=1.0, random_erasing=0.25, repeated_augmentation=3, horizontal_flip=0.5,
        auto_augment="rand-m9-mstd0.5-inc1",
    )
    assert args.world_size == world_size
    student = tiny.student(drop_path_rate=0.2, hidden_dropout_prob=0.1)
    trainer = tiny.trainer(student, args, teacher)
    trainer.add_callback(Count())
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(str(run)) is not None)
    metrics = trainer.evaluate()
    if args.should_save:
        result = trainer.model.state_dict(), trainer.weight_average.module.state_dict(), metrics
        torch.save(result, run / "result.pt")


def start(run, log):
    counter[:] = struct.pack("q", 0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                if world_size > 1:
                    os.environ.update(
                        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
                        MASTER_PORT=str(port),
                    )
                train(run)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return children


def is_saving(run):
    newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), default=None)
    return newest is not None and not is_whole(str(newest))


def wait_until(condition, children):
    while not condition():
        for child in children:
            assert os.waitpid(child, os.WNOHANG)[0] == 0, "a process ended before it was killed"
        time.sleep(0.0005)


def attempts(run, log):
    generator = random.Random(world_size)
    for attempt in range(kills):
        found = last_whole_checkpoint(str(run))
        start_step = int(found.rpartition("-")[2]) if found else 0
        children = start(run, log)
        # At random, and over all of the run.
        latest = (steps - 2 * save_steps) * (attempt + 1) // kills - save_steps
        target = generator.randint(start_step + 1, max(start_step + 1, latest))
        while_saving, at_once = attempt % 3 == 1, attempt % 3 == 0
        if at_once:  # between two saves, which take most of the time on a busy machine, and each time elsewhere
            target = target // save_steps * save_steps + 1 + attempt // 3 % (save_steps - 1)
        wait_until(lambda: struct.unpack("q", counter[:])[0] >= target, children)
        if while_saving:
            wait_until(lambda: is_saving(run), children)
        time.sleep(0 if at_once else generator.uniform(0, 0.01 if while_saving else 0.06))
        generator.shuffle(children)
        for child in children:
            os.kill(child, signal.SIGKILL)
            time.sleep(generator.choice([0, 0.05]))
        for child in children:
            os.waitpid(child, 0)
        yield {"from": start_step, "at": struct.unpack("q", counter[:])[0], "torn": is_saving(run)}


def finish(run, log):
    statuses = [os.waitpid(child, 0)[1] for child in start(run, log)]
    assert statuses == [0] * world_size, statuses


with open(folder / "log.txt", "w") as log:
    tiny.teacher_folder(folder / "teacher")
    for name in ("whole", "parts"):
        (folder / name).mkdir()
    finish(folder / "whole", log)
    kills_done = list(attempts(folder / "parts", log))
    finish(folder / "parts", log)
print(json.dumps(kills_done))
"""


def assert_same(one, other, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    elif hasattr(one, "tobytes"):
        assert one.tobytes() == other.tobytes(), where
    else:
        assert one == other, where


def without_times(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if not key.endswith(("_runtime", "_per_second"))}


def history(checkpoint: Path) -> list[dict]:
    """Losses and metrics of the run; what is said of the teacher is said again when a run goes on."""
    entries = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [without_times(entry) for entry in entries if not any(key.startswith("teacher_top") for key in entry)]


# Two processes have all that one has, and what may go wrong between them.
@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_killed_ten_times_ends_with_the_same_bits(tmp_path, world_size):
    command = [sys.executable, "-c", DRIVER, tmp_path, world_size, STEPS, SAVE_STEPS, KILLS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    log = tmp_path / "log.txt"
    assert done.returncode == 0, done.stderr[-2000:] + (log.read_text()[-3000:] if log.exists() else "")
    kills = json.loads(done.stdout.splitlines()[-1])

    assert len(kills) == KILLS
    assert all(0 < kill["at"] < STEPS for kill in kills), kills
    assert len({kill["from"] for kill in kills}) >= 4, kills
    assert len({kill["at"] % SAVE_STEPS for kill in kills}) >= 3, kills
    assert any(kill["torn"] for kill in kills), kills

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for name, one, other in zip(
        ("weights", "average", "metrics"),
        *(torch.load(run / "result.pt", weights_only=True) for run in (whole, parts)),
        strict=True,
    ):
        assert_same(without_times(one), without_times(other), name)
    assert {path.name for path in parts.glob("checkpoint-*")} == {"checkpoint-195", "checkpoint-200"}
    whole, parts = whole / "checkpoint-200", parts / "checkpoint-200"
    files = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.suffix in (".pt", ".pth")}
    assert files > {"optimizer.pt", "scheduler.pt"}
    assert len(files) == 2 + world_size  # the states of the random numbers
    listed = {str(path.relative_to(parts)) for path in parts.rglob("*") if path.is_file()} - {"checksums.json"}
    assert read_checksums(parts).keys() == listed  # of both processes
    check_unchanged(parts)
    for name in sorted(files):
        assert_same(*(torch.load(checkpoint / name, weights_only=False) for checkpoint in (whole, parts)), name)
    for name in ("model.safetensors", "ema/model.safetensors"):
        assert_same(*(load_file(checkpoint / name) for checkpoint in (whole, parts)), name)
    assert_same(history(whole), history(parts), "history")
    assert len([entry for entry in history(whole) if "eval_ema_top1" in entry]) == STEPS // (8 * SAVE_STEPS)
