"""Processes that hold the lock of a run's folder."""

import os
import subprocess
import sys
from pathlib import Path

from support.main_of import python_path

# Takes the lock of a folder at a given moment, says so, and holds it until it is told to end.
HOLDER = """
import sys, time
from hf_deit.errors import InputError
from hf_deit.hub.run_lock import hold
print("ready", flush=True)
for line in sys.stdin:
    folder, moment = line.split()
    while time.time() < float(moment):
        pass
    try:
        with hold(folder):
            print("holds", flush=True)
            sys.stdin.readline()
        print("released", flush=True)
    except InputError as error:
        print("refused", str(error).replace("\\n", " "), flush=True)
"""


class LockHolder:
    """Another process that takes locks."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            env={**os.environ, "PYTHONPATH": python_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.holds = False
        assert self.answer() == "ready"

    def answer(self) -> str:
        answer = self.process.stdout.readline().strip()
        self.holds = answer == "holds"
        return answer

    def tell(self, text: str = "") -> None:
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def take(self, folder: Path, moment: float = 0) -> str:
        self.tell(f"{folder} {moment}")
        return self.answer()

    def release(self) -> None:
        self.tell()
        assert self.answer() == "released"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
