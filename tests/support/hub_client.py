"""Clients of a `HubServer`: this process, and scripts in processes, forked from one that has imported everything."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants

from support.hub_server import HubServer
from support.main_of import python_path

DRIVER = """
import gc, json, os, sys, threading, traceback
from support.main_of import ROOT, load_script
import torch
from support import tiny
from tqdm import tqdm
import hf_deit.commands.train, hf_deit.hub.publishing

tqdm.set_lock(threading.RLock())  # its own is shared with the children
torch.set_num_threads(1)
scripts = {path.stem: load_script(path.stem) for path in (ROOT / "scripts").glob("*.py")}
gc.freeze()
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.pop("HF_TOKEN", None)
            os.environ.update(order["environment"])
            if order["before"]:
                exec(order["before"])
            status = scripts[order["script"]].main(order["arguments"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    status: int
    output: str
    seconds: float


class HubClient:
    """Scripts as a user of `hub` with a token runs them.

    Args:
        hub: the server.
        home: folder for the caches and the logs.
        token: of the user.
    """

    def __init__(self, hub: HubServer, home: Path, token: str | None) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._home, self._token, self._count = home, token, 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env={**hub.environment(home, token), "PYTHONPATH": python_path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "ready\n"

    def run(self, script: str, *arguments: object, token: str | None = "", before: str = "") -> Outcome:
        """Runs scripts/SCRIPT.py.

        Args:
            script: its name.
            *arguments: of the command line.
            token: another one than the client's; None for none.
            before: code that the process runs first.
        """
        self._count += 1
        log = self._home / f"log-{self._count}.txt"
        token = self._token if token == "" else token
        order = {
            "script": script,
            "arguments": list(map(str, arguments)),
            "environment": {} if token is None else {"HF_TOKEN": token},
            "log": str(log),
            "before": before,
        }
        start = time.monotonic()
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return Outcome(status, log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - start)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


def connect(hub: HubServer, home: Path, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process, until the test ends, a client of `hub` with a token and caches of its own."""
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    # transformers makes a client once, for the address of that time: a server of an earlier test, which is gone.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
