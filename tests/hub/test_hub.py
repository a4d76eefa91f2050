"""Which failures of the Hub are worth another try, how long, and what is said of them."""

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from hf_deit.hub import client, revisions
from hf_deit.hub.client import Attempt, is_transient, keep_trying, why, wished_pause
from hf_deit.hub.repository import HubRepository
from hf_deit.hub.revisions import resolve_dataset_revision


def refusal(status: int, **headers: str) -> HfHubHTTPError:
    request = httpx2.Request("POST", "http://hub/api")
    return HfHubHTTPError("refused", response=httpx2.Response(status, headers=headers, request=request))


def wrapped(cause: BaseException) -> RuntimeError:
    """As huggingface_hub wraps the failure of a large file."""
    error = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    error.__cause__ = cause
    return error


def test_servers_in_trouble_are_tried_again_and_refusals_are_not():
    statuses = [400, 401, 403, 404, 408, 409, 412, 413, 422, 429, 500, 502, 503, 504]
    again = [status for status in statuses if is_transient(refusal(status))]
    assert again == [408, 409, 412, 429, 500, 502, 503, 504]


BROKEN = [httpx2.ConnectError("x"), httpx2.ReadError("x"), ConnectionResetError(), TimeoutError()]


@pytest.mark.parametrize("cause", BROKEN)
def test_connections_that_fail_are_tried_again(cause):
    assert is_transient(cause)
    assert is_transient(wrapped(cause))


def test_other_errors_are_not_tried_again():
    assert not is_transient(ValueError("no such file"))
    assert not is_transient(wrapped(refusal(403)))
    assert is_transient(wrapped(refusal(503)))


def test_the_reason_is_the_innermost_one():
    assert why(wrapped(refusal(503, **{"X-Error-Message": "being mended"}))) == "HTTP 503: being mended"
    assert why(refusal(403)) == "HTTP 403: Forbidden"
    assert why(httpx2.ConnectError("Connection refused\nmore")) == "ConnectError: Connection refused"
    assert why(TimeoutError()) == "TimeoutError"


def test_the_pause_that_the_hub_asks_for():
    assert wished_pause(refusal(429, **{"Retry-After": "7"})) == 7
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < wished_pause(wrapped(refusal(503, **{"Retry-After": in_a_minute}))) <= 60
    for value in ("", "soon", "-5"):
        assert wished_pause(refusal(503, **{"Retry-After": value})) == 0
    assert wished_pause(ConnectionError()) == 0


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.pauses = 0.0, []
        monkeypatch.setattr(client.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(client.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def test_pauses_grow_and_end_with_the_time(monkeypatch):
    clock, calls = Clock(monkeypatch), []

    def fail() -> None:
        calls.append(clock.now)
        raise refusal(503)

    with pytest.raises(HfHubHTTPError):
        keep_trying(fail, what="a push", seconds=300)
    assert clock.now <= 300
    for pause, expected in zip(clock.pauses, [1, 2, 4, 8, 16, 32, 60, 60], strict=False):
        assert expected / 2 <= pause <= expected
    assert len(calls) == len(clock.pauses) + 1 >= 8


def test_a_success_ends_it_and_a_refusal_too(monkeypatch):
    Clock(monkeypatch)
    outcomes = [refusal(503), httpx2.ReadError("lost"), "done"]

    def call() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert keep_trying(call, what="a push", seconds=100) == "done"
    outcomes = [refusal(403), "never"]
    with pytest.raises(HfHubHTTPError):
        keep_trying(call, what="a push", seconds=100)
    assert outcomes == ["never"]


def test_an_attempt_keeps_its_error():
    def fail() -> None:
        raise refusal(500)

    for function, kind in ((fail, HfHubHTTPError), (lambda: None, type(None))):
        attempt = Attempt(function)
        attempt.join(10)
        assert isinstance(attempt.error, kind)
        assert attempt.daemon


def test_what_is_not_on_the_hub_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(revisions.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("asked the network"))
    assert resolve_dataset_revision("sklearn:digits") is None
    assert resolve_dataset_revision(str(tmp_path)) is None
    assert resolve_dataset_revision("lab/pets", "a" * 40) == "a" * 40


def test_a_repository_does_not_show_its_token():
    assert "hf_secret" not in repr(HubRepository("ada/pets", "hf_secret"))
    assert HubRepository("ada/pets", None, revision="v1").url.endswith("/ada/pets/tree/v1")
