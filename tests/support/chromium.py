"""Pages in a headless Chromium, told what to do over a pipe in its DevTools protocol."""

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# One of snap sees neither the folders of tests nor a profile in them.
PROGRAM = next((path for path in map(shutil.which, _NAMES) if path and "snap" not in Path(path).resolve().parts), None)
_SECONDS = 120  # for an answer; where much else runs it takes long to begin
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *(
        "--disable-sync",
        "--no-first-run",
        "--disable-breakpad",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--remote-debugging-pipe",
    ),
)


class Page:
    """A page of a browser of its own, which ends with it.

        with Page() as page:
            page.open(path)
            page.value("document.title")

    Attributes:
        requests: the addresses that the page has asked for.
        complaints: what it has said on its console, and errors.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._number, self._rest, self._session = 0, b"", None
        self._profile = tempfile.mkdtemp(prefix="chromium")

    def __enter__(self) -> "Page":
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # It reads from descriptor 3 and writes to 4, whatever numbers the pipes have here.
        shell = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, PROGRAM, *_OPTIONS, f"--user-data-dir={self._profile}"],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, place: Path | str) -> None:
        """Opens a file, or an address, and waits until it has been loaded.

        Raises:
            RuntimeError: it cannot be opened.
            TimeoutError: that takes too long.
        """
        address = place if isinstance(place, str) else place.resolve().as_uri()
        answer, end = self._call("Page.navigate", url=address), time.monotonic() + _SECONDS
        if "errorText" in answer:
            raise RuntimeError(f"{place}: {answer['errorText']}")
        while self.value("document.readyState + location.protocol") != f"complete{address.partition('/')[0]}":
            if time.monotonic() > end:
                raise TimeoutError(f"{place} is not loaded")
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """Of JavaScript on the page, awaited; an exception is raised as a RuntimeError."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 20.0) -> Any:
        """The value of an expression as soon as it is one that is true.

        Raises:
            TimeoutError: it stays as it is.
        """
        end = time.monotonic() + seconds
        while not (value := self.value(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} stays {value!r}")
            time.sleep(0.02)
        return value

    def give_files(self, selector: str, paths: Sequence[Path]) -> None:
        """Chooses files for an input, as a user does in the dialogue."""
        found = self._call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        files = [str(path.resolve()) for path in paths]
        self._call("DOM.setFileInputFiles", files=files, objectId=found["result"]["objectId"])

    def press(self, key: str, code: int) -> None:
        """Presses a key on what has the focus."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def show(self, width: int, height: int = 900, scheme: str = "light", media: str = "screen") -> None:
        """A screen's size, and what its system prefers."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self) -> str:
        """What is seen of it: a PNG in base64."""
        return self._call("Page.captureScreenshot")["data"]

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], _SECONDS)[0]:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self._read, 1 << 16)
            if not part:
                raise RuntimeError("Chromium has ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str | None, details: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(f"{details['type']}: {details['args']}")
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(details["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.complaints.append(details["entry"]["text"])
