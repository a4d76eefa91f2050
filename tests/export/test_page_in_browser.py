"""Contract: a page answers in a browser as Python does, from a folder and from a server, by hand and by keyboard.

It needs Chromium and the npm package onnxruntime-web: HF_DEIT_ONNXRUNTIME_WEB names its .tgz, or `hf-deit demo` has
downloaded it once into the default cache of the Hub.
"""

import base64
import functools
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto
from support.chromium import PROGRAM, Page
from support.classifier_folders import LABELS
from support.odd_files import png, scene, write_odd_files

from hf_deit.data.decoding import decode_image
from hf_deit.evaluation.attention.attention_maps import attention_maps
from hf_deit.export.page import page as page_module
from hf_deit.export.page.examples import examples_of_folder
from hf_deit.export.page.page import CDN_RUNTIME, PageProof, write_page
from hf_deit.export.page.runtime import BINARY, PLACE_VARIABLE, VERSION, runtime_files
from hf_deit.export.programs import page_program
from hf_deit.export.programs.source import ExportSource

_DOWNLOADED = Path("~/.cache/huggingface/hf_deit", f"onnxruntime-web-{VERSION}.tgz").expanduser()
RUNTIME = os.environ.get(PLACE_VARIABLE) or (str(_DOWNLOADED) if _DOWNLOADED.is_file() else None)
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed: no page is opened"),
    pytest.mark.skipif(RUNTIME is None, reason=f"{PLACE_VARIABLE} names no onnxruntime-web: no page is opened"),
]
TEXT = "document.getElementById('{}').textContent"
SHOWN = "!document.getElementById('{}').closest('[hidden]')"


PROOF = PageProof(num_images=9, agreement=1.0, largest_difference=0.001, runtime="onnxruntime 1")


class Made:
    """A page, the model that it is of, and odd files with what Python answers to them."""

    def __init__(self, folder: Path, source: ExportSource, core: ModelProto) -> None:
        (folder / "odd").mkdir()
        self.files = write_odd_files(folder / "odd", (700, 900))
        self.images = [decode_image({"path": str(path)}, path.name) for path in self.files]
        (folder / "examples" / "ten").mkdir(parents=True)
        (folder / "examples" / "ten" / "one.png").write_bytes(self.files[0].with_name("palette.png").read_bytes())
        self.source = source
        self.folder = folder / "a page" / "für alle #1"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page_program, "_core_model", lambda source: core)
            self.model = page_module.page_model(source)
            patch.setattr(page_module, "page_model", lambda source: self.model)
            patch.setattr(page_module, "prove_page", lambda *arguments: PROOF)
            examples = examples_of_folder(str(folder / "examples"))
            write_page(self.source, str(self.folder), examples=examples, runtime=RUNTIME)

    @functools.cached_property
    def heads(self) -> list[dict[str, np.ndarray]]:
        classifier, found = self.source.classifier, []
        for image in self.images:
            with torch.inference_mode():
                outputs = classifier.model(pixel_values=classifier.preprocess(image)[None])
            logits = {"probabilities": outputs.logits, **classifier.heads_of(outputs)}
            found.append({name: values[0].softmax(dim=-1).numpy() for name, values in logits.items()})
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, of_page):
    return Made(tmp_path_factory.mktemp("page"), *of_page)


@pytest.fixture(scope="module")
def browser():
    with ExitStack() as stack:
        try:
            page = stack.enter_context(Page())
        except (OSError, RuntimeError, TimeoutError) as error:
            pytest.skip(f"{PROGRAM} does not start here ({error}): no page is opened")
        yield page


@pytest.fixture
def page(made, browser):
    browser.requests.clear()
    browser.show(1280)
    browser.open(made.folder / "index.html")
    assert browser.value("hfDeit.opened") is True
    yield browser
    assert browser.complaints == []


def choose(page: Page, path: Path) -> str:
    """Chooses a file, and gives what the page says of it."""
    page.give_files("#file", [path])
    status = TEXT.format("status")
    return page.wait(f"/^(Looking|Ready)/.test({status}) ? '' : {status}")


def ask(page: Page, files: list[Path]) -> list[dict]:
    """The outputs of the page's model to files."""
    given = "{type: 'file', id: 'many', multiple: true, hidden: true}"
    page.value(f"document.body.append(Object.assign(document.createElement('input'), {given}))")
    page.give_files("#many", files)
    plain = "o => o && Object.fromEntries(Object.entries(o).map(([n, t]) => [n, Array.from(t.data)]))"
    many = "document.getElementById('many').files"
    return [page.value(f"hfDeit.classify({many}[{index}], 'it').then({plain})") for index in range(len(files))]


PIXELS = """decoding.read(document.getElementById('many').files[%d]).then(read => {
    let text = "";
    const { pixels } = read;
    for (let i = 0; i < pixels.length; i += 8192) text += String.fromCharCode(...pixels.subarray(i, i + 8192));
    return [read.height, read.width, btoa(text)];
})"""


def check_answers(page: Page, made: Made) -> None:
    answers = ask(page, made.files)
    assert len(answers) >= 20 and None not in answers
    for path, answer, python in zip(made.files, answers, made.heads, strict=True):
        for head, expected in python.items():
            assert np.argmax(answer[head]) == expected.argmax(), (path.name, head)
            assert np.abs(np.array(answer[head]) - expected).max() < 0.02, (path.name, head)


def test_it_answers_as_python_does_from_a_folder(made, page):
    check_answers(page, made)
    own = made.folder.resolve().as_uri()
    asked = [address for address in page.requests if not address.startswith(("data:", "blob:"))]
    assert len(asked) > 8 and all(address.startswith(own) for address in asked)
    page.value("fetch('https://127.0.0.1:9/').catch(() => {})")
    assert "Content Security Policy" in "".join(page.complaints)  # nor could anything leave it
    page.complaints.clear()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder's files, to whoever asks."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def end_headers(self) -> None:
            self.send_header("Access-Control-Allow-Origin", "*")
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def test_it_answers_as_python_does_from_a_server(made, browser):
    browser.requests.clear()
    with served(made.folder) as origin:
        browser.open(origin)
        assert browser.value("hfDeit.opened") is True
        check_answers(browser, made)
    asked = [address for address in browser.requests if not address.startswith(("data:", "blob:"))]
    assert all(address.startswith(origin) for address in asked)
    assert browser.complaints == []


def test_the_runtime_may_come_from_a_network_if_it_is_the_one(made, browser, tmp_path, monkeypatch):
    (tmp_path / "network").mkdir()
    for name, content in runtime_files(RUNTIME).items():
        (tmp_path / "network" / name).write_bytes(content)
    with served(tmp_path / "network") as origin:
        monkeypatch.setattr(page_module, "CDN", origin)
        monkeypatch.setattr(page_module, "page_model", lambda source: made.model)
        monkeypatch.setattr(page_module, "prove_page", lambda *arguments: PROOF)
        write_page(made.source, str(tmp_path / "page"), runtime=CDN_RUNTIME)
        browser.open(tmp_path / "page" / "index.html")
        assert browser.value("hfDeit.opened") is True and browser.complaints == []
        (answer,) = ask(browser, made.files[:1])
        assert np.argmax(answer["probabilities"]) == made.heads[0]["probabilities"].argmax()
        with open(tmp_path / "network" / BINARY, "ab") as file:
            file.write(b"another")
        browser.open(tmp_path / "page" / "index.html")
        assert browser.value("hfDeit.opened") is False
    assert "integrity" in "".join(browser.complaints)
    browser.complaints.clear()


def test_it_sees_the_pixels_that_python_sees(made, page):
    ask(page, made.files)
    for index, (path, image) in enumerate(zip(made.files, made.images, strict=True)):
        height, width, text = page.value(PIXELS % index)
        pixels = np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(height, width, 3)
        assert (height, width) == (image.height, image.width), path.name
        # None differs in the versions that were tried; decoders of JPEG may round otherwise.
        assert np.abs(pixels.astype(int) - np.asarray(image)).max() <= 2, path.name


def test_attention_is_that_of_python(made, page):
    index = [path.name for path in made.files].index("turned-6.jpg")
    (answer,) = ask(page, [made.files[index]])
    expected = attention_maps(made.source.classifier, made.source.classifier.preprocess(made.images[index])).maps
    for (method, token), values in expected.items():
        if method in answer:
            got = np.reshape(answer[method], (2, *values.shape))[["class", "distillation"].index(token)]
            assert np.abs(got - values.numpy()).max() < 2e-3
    assert not page.value(SHOWN.format("legend"))
    seen = "document.getElementById('picture').toDataURL()"
    pictures = {page.value(seen)}
    for token in ("class", "distillation"):
        page.value(f"document.querySelector('#tokens input[value={token}]').click()")
        assert page.value(SHOWN.format("legend"))
        assert f"the {token} token looks most at" in page.value(TEXT.format("attention-words")).lower()
        pictures.add(page.value(seen))
    page.value(
        "(m => { m.value = 'rollout'; m.dispatchEvent(new Event('change')) })(document.getElementById('method'))"
    )
    pictures.add(page.value(seen))
    assert len(pictures) == 4


def test_labels_are_text_whatever_they_say(made, page):
    said = choose(page, made.files[0])
    order = np.argsort(-made.heads[0]["probabilities"])
    assert said.startswith(f"plain.jpg: {LABELS[order[0]]}, ")
    bars = page.value("[...document.querySelectorAll('#best li')].map(item => item.firstChild.textContent)")
    assert bars == [LABELS[index] for index in order[:5]]
    assert page.value("[...document.querySelectorAll('#labels li')].map(item => item.textContent)") == list(LABELS)
    assert page.value("document.querySelectorAll('#labels img, #best img, #labels b').length") == 0
    assert (
        len(page.value("[...document.querySelectorAll('#head-distillation li')].map(item => item.textContent)")) == 3
    )
    assert " ms for the answer" in page.value(TEXT.format("time"))


def test_of_two_images_at_once_the_last_is_shown(made, page):
    ask(page, made.files[:2])
    many = "document.getElementById('many').files"
    both = f"Promise.all([hfDeit.classify({many}[1], 'first'), hfDeit.classify({many}[0], 'last')])"
    assert page.value(f"{both}.then(answers => answers.map(answer => answer !== null))") == [False, True]
    assert page.value(TEXT.format("status")).startswith("last: ")


UNNAMED = """[...document.querySelectorAll("button, input:not([hidden]), select, img, canvas:not([aria-hidden])")]
    .filter(one => !(one.textContent.trim() || one.alt || one.ariaLabel || one.labels?.length))
    .map(one => one.outerHTML)"""


def test_keys_reach_everything(made, page):
    page.value("document.activeElement.blur()")
    reached = []
    for _ in range(4):
        page.press("Tab", 9)
        reached.append(page.value("document.activeElement.id || document.activeElement.title"))
    assert reached[:3] == ["choose", "camera", "ten"]
    page.value("document.querySelector('#examples button').focus()")
    page.press("Enter", 13)
    assert page.wait(f"{SHOWN.format('result')} && {TEXT.format('status')}").startswith("Example “ten”: ")
    assert page.value("document.getElementById('status').getAttribute('role')") == "status"
    page.value("document.querySelector('#tokens input').focus()")
    page.press("ArrowRight", 39)
    assert page.value("document.querySelector('#tokens input:checked').value") == "class"
    assert page.value(SHOWN.format("legend"))
    assert page.value("document.getElementById('picture').getAttribute('aria-label')").endswith("the class token")
    assert page.value(UNNAMED) == []


def test_what_it_cannot_take_is_told(made, page, tmp_path):
    choose(page, made.files[0])
    for name, content, words in (
        ("deep.png", png(scene(20, 20)[..., 0].astype(np.uint16), depth=16, colour=0), "16 bits of grey"),
        ("scan.tif", b"II*\0" + bytes(60), "TIFF file, which this browser cannot read"),
        ("cut.jpg", made.files[0].read_bytes()[:40], "JPEG file"),
        ("text.txt", b"hello", "no image that this browser can read"),
    ):
        (tmp_path / name).write_bytes(content)
        page.value("document.getElementById('error').textContent = ''")
        page.give_files("#file", [tmp_path / name])
        told = page.wait(TEXT.format("error"))
        assert told.startswith(f"{name}: ") and words in told
        assert not page.value(SHOWN.format("result"))  # of another image
    page.value("document.dispatchEvent(new ClipboardEvent('paste'))")
    assert "no image in the clipboard" in page.value(TEXT.format("error"))
    page.value("document.getElementById('camera').click()")
    assert "camera" in page.wait(TEXT.format("error") + ".includes('camera') && " + TEXT.format("error"))


GIVEN = """(() => {
    const transfer = new DataTransfer();
    const { data, type } = hfDeit.examples[0];
    transfer.items.add(new File([hfDeit.bytesOf(data)], "given.png", { type }));
    document.dispatchEvent(new %s);
})()"""


@pytest.mark.parametrize("event", ["ClipboardEvent('paste', {clipboardData", "DragEvent('drop', {dataTransfer"])
def test_an_image_can_be_pasted_and_dropped(page, event):
    page.value(GIVEN % f"{event}: transfer }})")
    page.wait(f"{TEXT.format('status')}.startsWith('given.png: ')")
    click = "new Promise(done => { document.getElementById('file').click = done; %s.click() }).then(() => true)"
    assert page.value(click % "document.getElementById('drop')")  # as on the button


CAMERA = """(() => {
    const canvas = document.createElement("canvas");
    canvas.width = 64;
    canvas.height = 48;
    canvas.getContext("2d").fillRect(9, 9, 20, 20);
    window.tracks = [];
    window.still = setInterval(() => canvas.getContext("2d").fillRect(9, 9, 20, 20), 20);
    navigator.mediaDevices.getUserMedia = async () => {
        const stream = canvas.captureStream();
        window.tracks.push(...stream.getTracks());
        return stream;
    };
})()"""


def test_the_camera_takes_a_picture_and_is_let_go(page):
    page.value(CAMERA)
    page.value("document.getElementById('camera').click()")
    page.wait("document.getElementById('dialog').open && document.getElementById('video').videoWidth === 64")
    assert page.value("document.getElementById('dialog').contains(document.activeElement)")
    page.value("document.getElementById('shoot').click()")
    page.wait(f"{TEXT.format('status')}.startsWith('the picture taken: ')")
    assert "64 \u00d7 48" in page.value(TEXT.format("time"))
    page.value("document.getElementById('camera').click()")
    page.wait("document.getElementById('dialog').open")
    page.press("Escape", 27)
    page.wait("!document.getElementById('dialog').open && tracks.every(track => track.readyState === 'ended')")


def test_very_large_photographs_are_shrunk_in_whole_blocks(page):
    made = """(async () => {
        const canvas = new OffscreenCanvas(9000, 6);
        const context = canvas.getContext('2d');
        for (let x = 0; x < 9000; x++) {
            context.fillStyle = `rgb(${x % 3 * 90} 9 200)`;
            context.fillRect(x, 0, 1, 6);
        }
        const read = await decoding.read(await canvas.convertToBlob(), 10000);
        return [read.shrunk, read.width, read.height, [...read.pixels.slice(0, 6)]];
    })()"""
    assert page.value(made) == [3, 3000, 2, [90, 9, 200, 90, 9, 200]]


def test_it_is_of_a_phone_s_size_and_dark_where_the_system_is(made, page):
    choose(page, made.files[0])
    page.value("document.querySelector('#tokens input[value=class]').click()")
    light = page.value("getComputedStyle(document.body).backgroundColor")
    page.show(390, 844, scheme="dark")
    page.value("document.querySelector('details').open = true")
    page.value("document.querySelector('#labels li').textContent = 'long'.repeat(50)")
    assert page.value("document.documentElement.scrollWidth") <= 390
    dark = page.value("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, light[4:-1].split(","))) > 600 > 200 > sum(map(int, dark[4:-1].split(",")))


def test_a_folder_that_was_not_copied_whole_is_told(made, browser, tmp_path):
    for path in made.folder.iterdir():
        if path.name != "model-01.js":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    browser.open(tmp_path / "index.html")
    assert browser.value("hfDeit.opened") is False
    assert "model-01.js cannot be loaded" in browser.value(TEXT.format("error"))
    browser.complaints.clear()
