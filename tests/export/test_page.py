"""Contract: a page is made whole or not at all, answers as its model does, and holds nothing that it should not."""

import base64
import gzip
import io
import json
import os
import re
import tarfile
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from support import families, tiny
from support.classifier_folders import LABELS, save_classifier
from support.images import picture
from support.odd_files import scene

from hf_deit.commands import demo
from hf_deit.errors import CheckpointError, ExportError, InputError
from hf_deit.evaluation.attention.attention_maps import attention_maps
from hf_deit.export.page import page as page_module
from hf_deit.export.page import runtime as runtime_module
from hf_deit.export.page.examples import MOST_EXAMPLES, Example, examples_of_folder
from hf_deit.export.page.page import CDN_RUNTIME, PageProof, prove_page, write_page
from hf_deit.export.page.runtime import BINARY, CDN, GLUE, INTEGRITY, SCRIPT, integrity_of, runtime_files
from hf_deit.export.parity import odd_images
from hf_deit.export.programs import page_program
from hf_deit.export.programs.page_program import METHODS, page_model
from hf_deit.export.programs.source import load_source

PROOF = PageProof(num_images=9, agreement=1.0, largest_difference=0.001, runtime="onnxruntime 1")
RUNTIME = {SCRIPT: b"var ort;", GLUE: b"export default 1;", BINARY: b"\0asm" + bytes(range(256)) * 9}


@pytest.fixture
def source(of_page):
    return of_page[0]


@pytest.fixture
def exported_once(monkeypatch, of_page):
    monkeypatch.setattr(page_program, "_core_model", lambda source: of_page[1])


@pytest.fixture
def model(source, exported_once):
    return page_model(source)


@pytest.fixture
def made(monkeypatch, exported_once):
    """Pages with a runtime that is none, and a proof that is none."""
    monkeypatch.setattr(page_module, "prove_page", lambda *arguments: PROOF)
    monkeypatch.setattr(page_module, "runtime_files", lambda place: RUNTIME)


def run(model, image):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": np.asarray(image)[None]}), strict=True))


WITH_ATTENTION = {"probabilities", "last_layer", "rollout"}
KINDS = {
    "plain": (lambda: tiny.student(distilled=False), WITH_ATTENTION),
    "cait": (lambda: families.CAIT.tiny(id2label=dict(enumerate("abcde"))), WITH_ATTENTION),
    "resnet": (tiny.resnet, {"probabilities"}),
}


def check_outputs(source, model):
    image = Image.fromarray(scene(50, 70))
    classifier, given = source.classifier, run(model, image)
    pixels = classifier.preprocess(image)
    with torch.inference_mode():
        outputs = classifier.model(pixel_values=pixels[None])
    expected = {"probabilities": outputs.logits}
    if classifier.has_two_heads:
        expected |= classifier.heads_of(outputs)
    for name, logits in expected.items():
        assert np.abs(given[name] - logits.softmax(dim=-1).numpy()).max() < 0.01, name
    if "rollout" in given:
        tokens = ["class", "distillation"]
        for (method, token), values in attention_maps(classifier, pixels).maps.items():
            if method in given:
                assert np.abs(given[method][tokens.index(token)] - values.numpy()).max() < 2e-3, method
    several = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {"images": np.stack([np.asarray(image), scene(50, 70, 1), scene(50, 70, 2)])}
    )
    for (name, values), of_several in zip(given.items(), several, strict=True):
        first = of_several if name in METHODS else of_several[:1]
        assert np.abs(first - values).max() < 1e-4
    return set(given)


def test_its_file_tells_what_each_head_says_and_where_tokens_look(source, model):
    names = check_outputs(source, model)
    assert names == {"probabilities", "class", "distillation", "last_layer", "rollout"}
    assert run(model, Image.fromarray(scene(50, 70)))["rollout"].shape == (2, 2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_models_without_heads_or_tokens_have_no_such_outputs(kind, tmp_path):
    make, expected = KINDS[kind]
    source = load_source(save_classifier(tmp_path, make()))
    assert check_outputs(source, page_model(source)) == expected


@pytest.mark.usefixtures("made")
def test_a_folder_holds_all_that_its_page_asks_for(source, model, tmp_path):
    page = write_page(source, str(tmp_path / "deep" / "page"), examples=[example()], licence="apache-2.0")
    folder = tmp_path / "deep" / "page"
    assert sorted(page.files) == sorted(path.name for path in folder.iterdir())
    html = (folder / "index.html").read_text()
    asked = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert {name for name in asked if not name.startswith("data:")} <= set(page.files)
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "connect-src" not in html and "default-src 'none'" in html and "unsafe-inline" not in html
    assert unpacked(folder, "model") == model.SerializeToString()
    assert unpacked(folder, "binary") == RUNTIME[BINARY] and unpacked(folder, "glue") == RUNTIME[GLUE]
    assert (folder / SCRIPT).read_bytes() == RUNTIME[SCRIPT]
    assert "MIT License" in (folder / "onnxruntime-LICENSE.txt").read_text()
    settings = json.loads((folder / "settings.js").read_text().partition("=")[2].strip().rstrip(";"))
    assert settings["labels"] == list(LABELS) and settings["licence"] == "apache-2.0"
    assert settings["preprocessing"] == json.loads(json.dumps(source.preprocessing.to_dict()))
    assert (settings["tokens"], settings["hasTwoHeads"]) == (["class", "distillation"], True)
    assert settings["proof"]["agreement"] == 1.0 and settings["link"] is None
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def unpacked(folder, name):
    parts = [
        re.search(r'"(?P<text>[^"]{9,})"\);', path.read_text())["text"] for path in sorted(folder.glob(f"{name}-*"))
    ]
    return gzip.decompress(b"".join(map(base64.b64decode, parts)))


def example():
    content = io.BytesIO()
    picture(1, 2).save(content, "PNG")
    return Example("</script><img>.png", "ape", content.getvalue())


@pytest.mark.usefixtures("made")
def test_large_files_come_in_parts(source, model, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "_PART_BYTES", 50_000)
    page = write_page(source, str(tmp_path / "page"))
    assert sum(name.startswith("model-") for name in page.files) > 1
    assert unpacked(tmp_path / "page", "model") == model.SerializeToString()


@pytest.mark.usefixtures("made")
def test_names_are_text(source, tmp_path):
    odd = replace(source, classifier=replace(source.classifier, name="<script>alert(1)</script>"))
    write_page(odd, str(tmp_path / "page"), examples=[example()])
    html = (tmp_path / "page" / "index.html").read_text()
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html


@pytest.mark.usefixtures("made")
def test_from_a_network_only_the_pinned_runtime_is_taken(source, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "runtime_files", None)  # it is not asked for
    page = write_page(source, str(tmp_path / "page"), runtime=CDN_RUNTIME)
    assert not {SCRIPT, "binary-01.js", "glue-01.js"} & set(page.files)
    html = (tmp_path / "page" / "index.html").read_text()
    assert f'src="{CDN}{SCRIPT}" integrity="{INTEGRITY[SCRIPT]}" crossorigin="anonymous"' in html
    assert re.findall(r"https://[^\s\"';]+", html) == [CDN, "https://cdn.jsdelivr.net", CDN + SCRIPT]


# The folder


@pytest.mark.usefixtures("made")
def test_an_earlier_page_is_replaced_and_nothing_else(source, tmp_path, monkeypatch):
    folder = tmp_path / "page"
    folder.mkdir()
    write_page(source, str(folder))
    (folder / "app.js").write_text("changed")
    write_page(source, str(folder), runtime=CDN_RUNTIME)
    assert not (folder / SCRIPT).exists() and (folder / "app.js").read_text() != "changed"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds what is of no page \(notes.txt\)"):
        write_page(source, str(folder))
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "index.html").exists()
    other = tmp_path / "file"
    other.write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        write_page(source, str(other))
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="is where you are"):
        write_page(source, ".")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "page"]


@pytest.mark.usefixtures("made")
def test_what_fails_leaves_nothing(source, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "page"
    monkeypatch.setattr(page_module, "_html", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(CheckpointError, match="No space left"):
        write_page(source, str(folder))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()


@pytest.mark.usefixtures("made")
def test_a_page_that_would_answer_otherwise_is_not_made(source, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "prove_page", prove_page)
    monkeypatch.setattr(odd_images, "_LARGE", ())
    monkeypatch.setattr(odd_images, "NUM_ODD_IMAGES", 60)
    wrong = page_model(replace(source, preprocessing=replace(source.preprocessing, channel_order="BGR")))
    right = page_module.page_model
    monkeypatch.setattr(page_module, "page_model", lambda source: wrong)
    with pytest.raises(ExportError, match=r"model.onnx does not answer as the model does"):
        write_page(source, str(tmp_path / "page"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(page_module, "page_model", right)
    proof = write_page(source, str(tmp_path / "page"), examples=[example()]).proof
    assert proof.num_images == 61 and proof.agreement > 0.995 and proof.largest_difference < 0.5


# The runtime


def archive(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(content.getvalue(), mtime=0)  # with the time in it, one made a second later is another file


@pytest.fixture
def other_digests(monkeypatch, tmp_path):
    monkeypatch.delenv(runtime_module.PLACE_VARIABLE, raising=False)
    digests = {name: integrity_of(content, "sha384") for name, content in RUNTIME.items()}
    monkeypatch.setattr(runtime_module, "INTEGRITY", digests)
    monkeypatch.setattr(runtime_module, "_ARCHIVE_INTEGRITY", integrity_of(archive(RUNTIME), "sha512"))
    monkeypatch.setattr(runtime_module.constants, "HF_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("other_digests")
def test_the_runtime_is_taken_from_a_file_or_a_folder_as_it_was_tested(tmp_path, monkeypatch):
    (tmp_path / "web.tgz").write_bytes(archive(RUNTIME))
    assert runtime_files(str(tmp_path / "web.tgz")) == RUNTIME
    (tmp_path / "package" / "dist").mkdir(parents=True)
    for name, content in RUNTIME.items():
        (tmp_path / "package" / "dist" / name).write_bytes(content)
    assert runtime_files(str(tmp_path / "package")) == runtime_files(str(tmp_path / "package" / "dist")) == RUNTIME
    monkeypatch.setenv(runtime_module.PLACE_VARIABLE, str(tmp_path / "web.tgz"))
    assert runtime_files() == RUNTIME
    (tmp_path / "web.tgz").write_bytes(archive({**RUNTIME, SCRIPT: b"evil"}))
    with pytest.raises(InputError, match=rf"{SCRIPT} of .*web.tgz' is not that of onnxruntime-web"):
        runtime_files()
    (tmp_path / "web.tgz").write_bytes(archive(RUNTIME)[:90])
    with pytest.raises(InputError, match="is not the npm package"):
        runtime_files(str(tmp_path / "web.tgz"))
    for place, words in ((tmp_path / "absent.tgz", "cannot be read"), (tmp_path, "is not the npm package")):
        with pytest.raises(InputError, match=words):
            runtime_files(str(place))


@pytest.mark.usefixtures("other_digests")
def test_it_is_downloaded_once_and_checked(monkeypatch):
    with pytest.raises(
        InputError, match=r"HF_HUB_OFFLINE is set: download https://registry.npmjs.org/.*--runtime FILE"
    ):
        runtime_files()
    given = [archive({**RUNTIME, SCRIPT: b"evil"}), archive(RUNTIME)]

    class Response:
        def raise_for_status(self):
            self.content = given.pop(0)
            return self

    monkeypatch.setattr(runtime_module.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(runtime_module.httpx2, "get", lambda *arguments, **settings: Response())
    with pytest.raises(InputError, match="is not the file that it was"):
        runtime_files()
    assert runtime_files() == RUNTIME == runtime_files() and given == []
    with open(runtime_module.cached_archive(), "r+b") as file:
        file.write(b"torn")
    given.append(archive(RUNTIME))
    assert runtime_files() == RUNTIME and given == []


# Examples, and the command


def test_examples_are_spread_small_and_without_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[274] = "a camera", 6
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for number in range(9):
            path = tmp_path / label / f"{number}.jpg"
            Image.fromarray(scene(700, 900) if not number else scene(70, 90, number)).save(path, exif=exif)
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "bee" / "8.jpg").write_bytes(b"torn")
    found = examples_of_folder(str(tmp_path))
    assert found == examples_of_folder(str(tmp_path)) and len(found) == MOST_EXAMPLES
    assert {one.label for one in found} == {"ant", "bee"}
    large = next(one for one in found if one.name == "ant/0.jpg")
    assert large.type == "image/jpeg" and large.image().size == (398, 512)  # upright
    assert {one.type for one in found if one is not large and one.name != "bee/0.jpg"} == {"image/png"}
    assert all(b"a camera" not in one.content and not Image.open(io.BytesIO(one.content)).getexif() for one in found)
    with pytest.raises(InputError, match="is no folder"):
        examples_of_folder(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        examples_of_folder(str(tmp_path / "empty"))


@pytest.mark.usefixtures("made")
def test_the_command_says_what_it_made_and_how_to_open_it(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_classifier(tmp_path / "my-model")
    (tmp_path / "my-model" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# It\n")
    assert demo.main(["--model", "my-model", "--output-dir", "out"]) == 0
    said = capsys.readouterr().out
    assert "out/index.html: " in said and "0 example images" in said and "double click" in said
    assert '"licence": "cc-by-4.0"' in (tmp_path / "out" / "settings.js").read_text()
    (tmp_path / "my-model" / "README.md").write_text("---\nlicense: [\n---\n")  # no YAML
    assert demo.main(["--model", "my-model", "--output-dir", "out"]) == 0
    assert '"licence": null' in (tmp_path / "out" / "settings.js").read_text()
    assert demo.main(["--model", "my-model", "--output-dir", "out", "--exampels", "x"]) == 2
    assert "did you mean '--examples'" in capsys.readouterr().err


def test_a_model_without_names_is_refused(tmp_path, capsys):
    names = {index: f"LABEL_{index}" for index in range(10)}
    folder = save_classifier(tmp_path / "model", tiny.student(id2label=names))
    assert demo.main(["--model", folder, "--output_dir", str(tmp_path / "page"), "--runtime", "cdn"]) == 2
    assert "has no names for its 10 labels" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["model"]
