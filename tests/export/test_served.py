"""Contract: the served page answers as the classifier does, is reached from this machine alone, and asks for nothing
outside."""

import io
import os
import signal
import socket
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny
from support.checkpoints import saved

from hf_deit.data.decoding import decode_image
from hf_deit.errors import BadImageError, InputError
from hf_deit.evaluation.attention.attention import overlays
from hf_deit.export.page import served as served_page
from hf_deit.export.page.served import Answering, load_answering, page, serve, served

gradio_client = pytest.importorskip("gradio_client")


def files() -> dict[str, bytes]:
    """Images of kinds that are decoded in different ways, by what is odd about them."""
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 4), dtype=np.uint8)
    turned, alpha = Image.Exif(), Image.fromarray(pixels)
    turned[274] = 6
    kinds = {
        "transparent.png": (alpha, {}),
        "turned.jpg": (alpha.convert("RGB"), {"exif": turned, "quality": 95}),
        "grey.png": (alpha.convert("L"), {}),
        "cmyk.jpg": (alpha.convert("RGB").convert("CMYK"), {}),
    }
    found = {}
    for name, (image, settings) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, "png" if name.endswith("png") else "jpeg", **settings)
        found[name] = buffer.getvalue()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "digits", tiny.student(fusion="softmax"), tiny.processor())


@pytest.fixture(scope="module")
def answering(folder) -> Answering:
    return load_answering(str(folder), use_cpu=True)


@pytest.fixture
def images(tmp_path) -> dict[str, str]:
    for name, content in files().items():
        (tmp_path / name).write_bytes(content)
    return {name: str(tmp_path / name) for name in files()}


def expected(answering: Answering, path: str) -> tuple[np.ndarray, torch.Tensor]:
    """(10,) probabilities of the fused answer, and the pixels that the model gets."""
    classifier = answering.classifier
    pixels = classifier.preprocess(decode_image({"path": path, "bytes": None}, "x"))
    with torch.no_grad():
        return torch.softmax(classifier.model(pixel_values=pixels[None]).logits[0].double(), dim=0).numpy(), pixels


def check_answer(found: dict[str, float], probabilities: np.ndarray) -> None:
    best = np.argsort(-probabilities)[:5]
    assert [*found] == [str(index) for index in best]
    np.testing.assert_allclose([*found.values()], probabilities[best], rtol=1e-4)


def labels_of(answer: dict) -> dict[str, float]:
    return {item["label"]: item["confidence"] for item in answer["confidences"]}


def test_an_answer_is_the_classifiers_by_its_own_fusion(answering, images):
    for path in images.values():
        answer = answering.answer(path, "relevance")
        probabilities, pixels = expected(answering, path)
        check_answer(answer.fused, probabilities)
        logits = answering.classifier.logits(pixels[None])
        for head, found in answer.heads.items():
            check_answer(found, torch.softmax(logits[head][0].double(), dim=0).numpy())
        maps = overlays(answering.classifier, pixels, "relevance")
        assert answer.overlays.keys() == maps.keys() == {"class", "distillation"}
        assert all(np.array_equal(answer.overlays[token], maps[token]) for token in maps)
        assert {picture.dtype for picture in maps.values()} == {np.dtype("uint8")}


def test_a_model_with_one_head_and_without_tokens_answers_alone(tmp_path, images):
    answering = load_answering(tiny.teacher_folder(tmp_path / "resnet"), use_cpu=True)
    answer = answering.answer(images["grey.png"])
    assert answer.heads == answer.overlays == {}
    check_answer(answer.fused, expected(answering, images["grey.png"])[0])
    assert len(page(answering).fns) > 0


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The hosts, but this machine, to which something in this process wanted to connect; none is reached."""
    hosts, connect = [], socket.socket.connect

    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            hosts.append(address[0])
            raise ConnectionRefusedError
        return connect(self, address)

    find = socket.getaddrinfo

    def find_here(host, *arguments, **settings):
        if host not in ("127.0.0.1", "localhost", None, b"127.0.0.1", b"localhost"):
            hosts.append(host)
            raise socket.gaierror
        return find(host, *arguments, **settings)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", find_here)
    return hosts


def test_the_page_answers_over_http_and_asks_for_nothing_outside(answering, images, asked, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with served(answering, examples=files()) as address:
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert address.startswith("http://127.0.0.1:") and uploads.parent == tmp_path
        with urllib.request.urlopen(address) as answer:
            html = answer.read().decode()
            assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "googleapis" not in html and "https://cdn" not in html
        client = gradio_client.Client(address, verbose=False, analytics_enabled=False, download_files=str(tmp_path))
        path = images["turned.jpg"]
        fused, first, second, pictures = client.predict(
            gradio_client.handle_file(path), "rollout", api_name="/classify"
        )
        probabilities, pixels = expected(answering, path)
        check_answer(labels_of(fused), probabilities)
        assert labels_of(first) != labels_of(second)
        assert [*uploads.rglob("turned.jpg")]
        shown = {item["caption"]: np.array(Image.open(item["image"]).convert("RGB")) for item in pictures}
        for token, picture in overlays(answering.classifier, pixels, "rollout").items():
            np.testing.assert_array_equal(shown[f"{token} token"], picture)
        for broken in (files()["grey.png"][:60], b"no image at all"):
            (tmp_path / "broken.png").write_bytes(broken)
            with pytest.raises(Exception, match="This image cannot be read: "):
                client.predict(gradio_client.handle_file(tmp_path / "broken.png"), "rollout", api_name="/classify")
        port = int(address.rstrip("/").rpartition(":")[2])
        taken = pytest.raises(InputError, match=f"cannot be served at 127.0.0.1:{port} .*give another --port")
        with taken, served(answering, port=port):
            pass
    assert asked == [] and "GRADIO_TEMP_DIR" not in os.environ
    assert not [*tmp_path.glob("hf_deit_demo_*")]  # what was uploaded is gone
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_and_so_does_a_request_to_end(folder, asked, tmp_path, monkeypatch, by):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = []

    def interrupt(seconds: float) -> None:
        with urllib.request.urlopen(said[0]) as answer:
            assert answer.status == 200
        signal.raise_signal(by)
        time.sleep(10)
        raise AssertionError("it goes on")

    monkeypatch.setattr(served_page, "_wait", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        serve(str(folder), say=said.append, use_cpu=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(said) == 1 and asked == [] and not [*tmp_path.glob("hf_deit_demo_*")]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_file_that_is_no_image_is_told(answering, tmp_path):
    (tmp_path / "x.png").write_bytes(b"GIF89a")
    with pytest.raises(BadImageError):
        answering.answer(str(tmp_path / "x.png"))


def test_gradio_is_named_where_it_is_missing(answering, monkeypatch):
    monkeypatch.setattr("hf_deit.export.requirements.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'hf_deit\[demo\]'"), served(answering):
        pass
