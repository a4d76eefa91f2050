"""Contract: exports beside a model are published with it if they are of these very weights, and no others' files.

What is published names no folder of a machine, is listed in the card with how good it is, and is used by the lines
that stand there.
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, snapshot_download
from PIL import Image
from support import exports, tiny
from support.checkpoints import edited, saved
from support.exports import exported
from support.facts import facts
from support.hub_client import connect
from support.markdown import NAMES, parsed

from hf_deit.commands import main
from hf_deit.errors import printable
from hf_deit.hub.card import (
    BEGIN,
    END,
    EXPORTS_BEGIN,
    EXPORTS_END,
    add_exports,
    card_faults,
    hand_written,
    make_card,
    merge_cards,
    split_card,
    update_card,
)
from hf_deit.hub.export_record import ExportRecord
from hf_deit.hub.exports import stage_exports, staged_exports
from hf_deit.hub.exports_in_card import exports_markdown, lines_for_a_folder
from hf_deit.hub.facts import SKLEARN_DIGITS
from hf_deit.hub.publishing import publish_folder
from hf_deit.hub.record import stage, write_record

EVERY_FILE = {f"{format}/{name}" for format, files in exports.FILES.items() for name in (*files, "export.json")}


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    connect(server, tmp_path / "home", "hf_write", monkeypatch)
    yield server
    server.remove_repository("ada/pets")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run with an export in every format beside its model."""
    folder = saved(tmp_path_factory.mktemp("runs") / "run", tiny.student(), tiny.processor())
    write_record(folder, facts(image_size=16, dataset=SKLEARN_DIGITS), [], "ada/pets")
    for format in exports.FILES:
        exported(folder, format)
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def published(hub) -> dict[str, bytes]:
    return dict(hub.files("ada/pets"))


def of_exports(names) -> set[str]:
    return {name for name in names if name.split("/")[0] in exports.FILES}


def test_exports_are_published_with_the_model_and_listed_in_its_card(hub, run):
    (run / "onnx" / "notes.txt").write_text("mine")
    (run / "onnx" / "model.onnx.tmp").write_text("half")
    assert main.main(["publish", str(run), "--hub_model_id", "ada/pets"]) == 0
    files = published(hub)
    assert of_exports(files) == EVERY_FILE
    assert {name for name in files if "/" not in name} >= {"config.json", "preprocessor_config.json"}
    card = files["README.md"].decode()
    data = ModelCard(card).data
    assert {"onnx", "openvino", "executorch", "transformers.js"} <= {
        *data.tags
    } and data.library_name == "transformers"
    assert card.index("## Use") < card.index("## Other formats") < card.index("## Teacher") < card.index(END)
    row = "| onnx/classifier\\_quantized.onnx | images | int8-dynamic | 3e-05 MB | "
    assert row.replace("\\", "") in card.replace("\\", "")
    assert (
        "| 0.9972 [0.9844, 0.9995] | 0.0213 | 0.9722 [0.9500, 0.9847] | 0.0028 [-0.0026, 0.0082] |\n"
        "| onnx/model.onnx | pixel_values | float32 | 1.5e-05 MB |  |  |  |  |\n"
    ) in card
    assert "ONNX Runtime, float32: compared on 360 images, split validation of sklearn:digits, by onnxruntime" in card
    assert "; on 12 odd images beside them it has the same answer: 1.0000 [0.7575, 1.0000]." in card
    assert (
        card.count("```python\nimport") == 4
        and 'pipeline("image-classification", "ada/pets", { dtype: "fp32" })' in card
    )
    record = ExportRecord.from_dict(json.loads(files["onnx/export.json"]))
    assert [parity.differing for parity in record.parity] == [(), ()]
    assert card_faults(card) == [] and hand_written(card) == ""


def test_nothing_of_the_machine_is_published_with_them(hub, run, finished):
    words = exports.parity(
        images=f"images of {run}/images and ~/secret/x",
        runtime={"x": f"{finished}/y 1.0"},
        left_out={"x.png": "is no image"},
        odd_images={"num_images": 3, "agreement": exports.interval(1.0, 0.4, 1.0), "differing": [{"image": "x.png"}]},
    )
    exported(run, "torch", parity=(words,), versions={"torch": "/home/ada/torch/2"})
    publish_folder(run, "ada/pets")
    for name, content in published(hub).items():
        for path in (str(finished), str(run), str(run.parent), "/home/ada", "~/secret", "x.png"):
            assert path.encode() not in content, (name, path)


def test_labels_that_look_like_paths_stay_labels(run, tmp_path):
    for format in exports.FILES:
        shutil.rmtree(run / format)
    exported(run, "onnx", labels=("/m/01g317", "/m/0cmf2"))
    (tmp_path / "tree").mkdir()
    stage(run, tmp_path / "tree")
    assert [export.labels for export in staged_exports(tmp_path / "tree")] == [("/m/01g317", "/m/0cmf2")]


def test_what_was_published_can_be_published_again(hub, run, tmp_path, caplog):
    edited(run, _name_or_path="/home/ada/pets")  # which is left out of what is published
    for format in exports.FILES:
        exported(run, format)
    publish_folder(run, "ada/pets")
    files = published(hub)
    snapshot = Path(snapshot_download("ada/pets", local_dir=tmp_path / "copy"))
    publish_folder(snapshot, "ada/pets")
    assert published(hub) == files and of_exports(files) == EVERY_FILE
    assert "left out of what is published" not in caplog.text


def test_an_export_that_is_gone_leaves_the_hub_and_what_people_have_put_there_stays(hub, run):
    hub.add_repository("ada/pets", {"onnx/mine.onnx": b"x", "coreml/model.mlmodel": b"y", "torch/export.json": b"{}"})
    publish_folder(run, "ada/pets")
    shutil.rmtree(run / "openvino")
    exported(run, "onnx", {"model.onnx": b"another"})
    publish_folder(run, "ada/pets")
    files = published(hub)
    assert {name for name in files if name.startswith("onnx/")} == {
        "onnx/mine.onnx",
        "onnx/model.onnx",
        "onnx/export.json",
    }
    assert files["onnx/model.onnx"] == b"another" and "coreml/model.mlmodel" in files
    assert not [name for name in files if name.startswith("openvino/")] and "executorch/model.pte" in files
    card = files["README.md"].decode()
    assert "openvino" not in ModelCard(card).data.tags and "openvino" not in card.lower()
    tiny.student(seed=1).save_pretrained(run)  # of which no export is
    publish_folder(run, "ada/pets")
    assert of_exports(published(hub)) == {"onnx/mine.onnx"}
    card = published(hub)["README.md"].decode()
    assert "## Other formats" not in card and not {"onnx", "transformers.js"} & {*ModelCard(card).data.tags}


def test_an_export_of_somebody_else_on_the_hub_removes_nothing(hub, run):
    foreign = {"files": [{"name": "../README.md"}, {"name": "x/y.onnx"}, {"name": "gone.onnx"}, {"name": 3}]}
    hub.add_repository("ada/pets", {"onnx/export.json": json.dumps(foreign).encode(), "onnx/mine.onnx": b"x"})
    for format in exports.FILES:
        shutil.rmtree(run / format)
    publish_folder(run, "ada/pets")
    assert {"onnx/mine.onnx", "README.md"} <= published(hub).keys()


def test_large_binaries_are_stored_as_the_hub_stores_them(hub, run):
    binary = bytes(range(256)) * 8
    exported(run, "executorch", {"model.pte": binary, "preprocessing.py": b"import numpy\n"})
    exported(run, "torch", {"classifier.pt2": binary[::-1]})
    publish_folder(run, "ada/pets")
    repository = hub._repositories["model", "ada/pets"]
    tree = repository.tree(repository.branches["main"])
    lfs = {name for name, file in tree.items() if file.lfs}
    assert {"onnx/model.onnx", "executorch/model.pte", "torch/classifier.pt2", "openvino/classifier.bin"} <= lfs
    assert not {"onnx/export.json", "executorch/preprocessing.py", "openvino/classifier.xml"} & lfs


# What is left out


def changed(**fields):
    def change(folder: Path) -> None:
        path = folder / "onnx" / "export.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def of_file(**fields):
    return lambda folder: changed(
        files=[{**json.loads((folder / "onnx/export.json").read_text())["files"][0], **fields}]
    )(folder)


def of_parity(**fields):
    return lambda folder: changed(
        parity=[{**json.loads((folder / "onnx/export.json").read_text())["parity"][0], **fields}]
    )(folder)


def of_model(**fields):
    return lambda folder: changed(model={**json.loads((folder / "onnx/export.json").read_text())["model"], **fields})(
        folder
    )


def written(name: str, content: bytes):
    return lambda folder: (folder / "onnx" / name).write_bytes(content)


def replaced(make):
    def change(folder: Path) -> None:
        (folder / "onnx" / "model.onnx").unlink()
        make(folder / "onnx" / "model.onnx")

    return change


def naming(content: bytes):
    return lambda folder: exported(folder, "onnx", {"model.onnx": b"\0" * 1_048_570 + content})


CASES = {
    "other weights": (lambda folder: tiny.student(seed=1).save_pretrained(folder), "of other weights, or of another"),
    "another configuration": (lambda folder: edited(folder, fusion="cls"), "or of another configuration"),
    "other preprocessing": (
        lambda folder: edited(folder, "preprocessor_config.json", image_mean=[0.1] * 3),
        "of other preprocessing",
    ),
    "of the Hub": (of_model(weights_digest=None), "does not say its weights_digest"),
    "of unknown preprocessing": (of_model(preprocessing_digest=None), "does not say its preprocessing_digest"),
    "a file that is gone": (lambda folder: (folder / "onnx/model.onnx").unlink(), "cannot be published"),
    "a torn file": (lambda folder: os.truncate(folder / "onnx/model.onnx", 3), "model.onnx is not as it was written"),
    "another file": (written("classifier.onnx", b"onnx classifier.onnX"), "classifier.onnx is not as it was written"),
    "no files": (changed(files=[]), "it names no files"),
    "code": (lambda folder: exported(folder, "onnx", {"setup.py": b"import os"}), "code that no export consists of"),
    "a link out": (replaced(lambda path: path.symlink_to("../../notes.txt")), "leads out"),
    "a link to a device": (replaced(lambda path: path.symlink_to("/dev/zero")), "leads out"),
    "a pipe": (replaced(os.mkfifo), "is a pipe"),
    "a folder": (replaced(os.mkdir), "is a folder"),
    "a traceback": (naming(b'File "/opt/ada/model.py", line 3'), "names folders of the machine"),
    "a traceback in JSON": (naming(rb'{"trace": "File \"/opt/ada/model.py\""}'), "names folders of the machine"),
    "a home": (naming(b"xx/home/ada/model.pth"), "names folders of the machine"),
    "a home of Windows": (naming(rb"C:\Users\ada\model.pth"), "names folders of the machine"),
    "another format": (changed(format="torch"), "it is of torch"),
    "an unknown format": (changed(format="coreml"), "one of onnx, openvino, executorch, torch was expected"),
    "a name that leads out": (of_file(name="../x.onnx"), "it has '../x.onnx' where"),
    "a name in a folder": (of_file(name="a/b.onnx"), "it has 'a/b.onnx' where"),
    "a hidden name": (of_file(name=".netrc"), "it has '.netrc' where"),
    "the record itself": (of_file(name="Export.json"), "or one is called export.json"),
    "an unknown purpose": (of_file(purpose="virus"), "it has 'virus' where one of classifier, model, support"),
    "an unknown precision": (of_file(precision="int3"), "it has 'int3' where one of"),
    "no digest": (of_file(sha256="abc"), "it has 'abc' where"),
    "no size": (of_file(num_bytes=-1), "less than no bytes"),
    "a size that is none": (of_file(num_bytes="many"), "its num_bytes is 'many', expected a number"),
    "more than all": (of_parity(agreement=exports.interval(1.5, 1.0, 2.0)), "expected one from 0 to 1"),
    "an interval elsewhere": (of_parity(accuracy=exports.interval(0.9, 0.1, 0.2)), "not between 0.1 and 0.2"),
    "half an interval": (of_parity(agreement={"value": 1.0}), "its agreement is {'value': 1.0}, expected an interval"),
    "NaN": (of_parity(largest_difference=float("nan")), "its largest_difference is nan"),
    "a huge number": (of_parity(num_images=10**400), "expected a number"),
    "a large difference": (of_parity(largest_difference=7), "its largest difference is 7"),
    "odd images": (of_parity(odd_images={"num_images": 3}), "its odd_images is {'num_images': 3}, expected an object"),
    "no truth": (of_parity(without_torch="yes"), "its without_torch is 'yes', expected true or false"),
    "a commit that is none": (of_model(revision="main"), "it has 'main' where"),
    "a digest that is none": (of_model(weights_digest=["x"]), "it has ['x'] where"),
    "deep facts": (of_model(deep=json.loads("[" * 50 + "]" * 50)), "at most 12 in each other"),
    "half a character": (changed(labels=["half\udcff"]), "whole characters"),
    "no JSON": (written("export.json", b"{"), "onnx/export.json cannot be read"),
    "no object": (written("export.json", b"[]"), "must hold an object"),
    "too deep": (written("export.json", b'{"a":' * 100_000), "nested too deep"),
    "a large record": (lambda folder: os.truncate(folder / "onnx/export.json", 1 << 40), "it has 1,099,511,627"),
    "something else": (changed(extra=1), "expected an object with"),
    "of an earlier version": (written("export.json", b'{"format": "onnx"}'), "expected an object with"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_export_that_is_not_the_models_or_not_as_it_was_is_left_out_and_said(finished, tmp_path, caplog, case):
    change, words = CASES[case]
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(finished / name, folder)
    exported(folder, "onnx")
    (tmp_path / "notes.txt").write_text("secret")
    change(folder)
    tree = tmp_path / "tree"
    (tree / "onnx").mkdir(parents=True)
    (tree / "onnx" / "model.onnx").write_bytes(b"of weights before")  # which waited for a push
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(folder / name, tree)
    stage_exports(folder, tree)
    assert not (tree / "onnx").exists() and staged_exports(tree) == ()
    said = [record.getMessage() for record in caplog.records if "left out of what is published" in record.getMessage()]
    assert len(said) == 1 and words in said[0] and "--to onnx" in said[0], said
    assert printable(said[0]) == said[0] and len(said[0]) < 1000


def test_a_run_that_pushes_while_it_trains_leaves_out_exports_of_earlier_weights(run, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    stage(run, tree)
    assert {export.format for export in staged_exports(tree)} == {*exports.FILES}
    tiny.student(seed=1).save_pretrained(run)
    stage(run, tree)
    assert staged_exports(tree) == () and not (tree / "onnx").exists() and (tree / "config.json").exists()


def test_a_record_reads_as_it_was_written(run):
    for format in exports.FILES:
        record = exported(run, format, quantization={"int8-dynamic": {"excluded": ["head"], "percentile": 99.9}})
        assert ExportRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


# Cards

CARD = """---
library_name: transformers
pipeline_tag: image-classification
tags: [vision]
---

# A model

It has been trained by somebody, on something, and this text is long enough to be one that says so to its readers.
"""


def test_a_card_that_people_have_made_gets_the_exports_at_its_end(hub, run):
    for name in ("run.json", "environment.json"):
        (run / name).unlink()
    (run / "README.md").write_text(CARD)
    publish_folder(run, "ada/pets")
    card = published(hub)["README.md"].decode()
    assert card_faults(card) == [] and (run / "README.md").read_text() == CARD
    assert (
        card.index("this text is long") < card.index(EXPORTS_BEGIN) < card.index("## Other") < card.index(EXPORTS_END)
    )
    assert ModelCard(card).data.tags == ["vision", "onnx", "openvino", "executorch", "transformers.js"]
    assert split_card(add_exports(card, (), "ada/pets")) == split_card(CARD)
    assert add_exports(CARD, (), "ada/pets") == CARD
    made = tuple(exported(run, format) for format in exports.FILES)
    assert add_exports(add_exports(CARD, made, "ada/pets"), made, "ada/pets") == add_exports(CARD, made, "ada/pets")


def test_what_people_have_written_stays_beside_exports_and_a_later_card_has_none_of_them(run):
    made = (exported(run, "onnx"),)
    card = make_card(facts(), "ada/pets", exports=made).replace(BEGIN, f"Above.\n\n{BEGIN}") + "\nBelow.\n"
    again = update_card(card, facts(), "ada/pets", exports=made)
    assert update_card(again, facts(), "ada/pets", exports=made) == again and split_card(again) == split_card(card)
    later = update_card(card, facts(), "ada/pets")
    assert hand_written(later).split() == ["Above.", "Below."] and "## Other formats" not in later
    assert not {"onnx", "transformers.js"} & {*ModelCard(later).data.tags}
    # A tag of people's own stays where no exports are, and the local card's goes with its exports.
    own = later.replace("tags:\n", "tags:\n- onnx\n")
    assert "onnx" in ModelCard(update_card(own, facts(), "ada/pets")).data.tags
    assert "onnx" not in ModelCard(update_card(merge_cards(later, card), facts(), "ada/pets")).data.tags


def test_transformers_js_is_named_where_it_opens_the_model(run):
    def section(**changes) -> str:
        record = exported(run, "onnx")
        return exports_markdown([replace(record, **changes)], "ada/pets", "v1")

    own = exported(run, "onnx")
    assert '"ada/pets", { dtype: "fp32", revision: "v1" }' in section()
    assert 'hf_hub_download("ada/pets", "onnx/classifier.onnx", revision="v1")' in section()
    assert "transformers.js" not in section(model={**own.model, "model_type": "cait"})
    assert "transformers.js" not in section(files=own.files[:2])
    assert "https://huggingface.co/ada/pets/resolve/v1/onnx/classifier.onnx" in section()
    assert 'dtype: "q8"' in section(files=own.files[3:]) and "session" not in section(files=own.files[3:])


def test_names_of_every_kind_stay_text_in_the_section(run):
    for start in range(0, len(NAMES), 40):
        text = " ".join(NAMES[start : start + 40])
        record = exported(run, "onnx", parity=(exports.parity(images=text, runtime={text: text}),))
        card = make_card(facts(), "ada/pets", exports=(record,))
        assert card_faults(card) == [] and hand_written(card) == ""
        tokens = parsed(card.split("\n---\n", 1)[1])
        blocks = [token.content for token in tokens if token.type == "html_block"]
        assert blocks == [f"{mark}\n" for mark in (BEGIN, EXPORTS_BEGIN, EXPORTS_END, END)]
        children = [child for token in tokens for child in token.children or ()]
        assert not {child.type for child in children} & {"html_inline", "s_open"}
        links = {child.attrs["href"] for child in children if child.type == "link_open"}
        assert all(link.startswith("https://huggingface.co/") for link in links), links


# The lines of the card


@pytest.fixture
def shown(hub, run, tmp_path, monkeypatch, capsys):
    """Publishes an export, runs the lines of its card where an image lies, and gives what they print."""
    image = Image.fromarray(np.random.RandomState(0).randint(1, 256, (30, 40, 4), dtype=np.uint8))
    (tmp_path / "here").mkdir()
    image.save(tmp_path / "here" / "image.png")
    monkeypatch.chdir(tmp_path / "here")

    def show(format: str, contents: dict[str, bytes]) -> tuple[str, str]:
        for other in exports.FILES:
            shutil.rmtree(run / other)
        exported(run, format, contents)
        publish_folder(run, "ada/pets")
        section = published(hub)["README.md"].decode().split("## Other formats")[1]
        first, second = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
        capsys.readouterr()
        exec(first + second, {"__name__": "__main__"})
        white = Image.new("RGBA", image.size, "white")
        answer = exports.answer(np.array(Image.alpha_composite(white, image).convert("RGB"))[None])[0]
        return capsys.readouterr().out, f"{answer.argmax()} {answer.max():.4f}"

    return show


def check_printed(printed: str, expected: str) -> None:
    label, probability = printed.split()
    assert f"{label} {float(probability):.4f}" == expected


def test_the_lines_for_onnx_answer(shown):
    pytest.importorskip("onnxruntime")
    check_printed(*shown("onnx", {"classifier.onnx": exports.onnx_program()}))


NODE_MODULES = os.environ.get("HF_DEIT_NODE_MODULES")  # with @huggingface/transformers and onnxruntime-web


@pytest.mark.skipif(
    shutil.which("node") is None or NODE_MODULES is None, reason="needs node, and packages in HF_DEIT_NODE_MODULES"
)
def test_the_lines_in_javascript_answer(hub, run, tmp_path):
    exported(run, "onnx", {"classifier.onnx": exports.onnx_program(), "model.onnx": exports.onnx_network()})
    publish_folder(run, "ada/pets")
    with_runtime, with_transformers = re.findall(r"```js\n(.*?)```", published(hub)["README.md"].decode(), re.DOTALL)
    pixels = np.random.RandomState(0).randint(1, 256, (1, 30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(tmp_path / "image.png")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    before = (
        f'import {{ env }} from "@huggingface/transformers"; env.remoteHost = "{hub.url}/"; '
        f'env.cacheDir = "{tmp_path}/cache/";\n'
    )
    (tmp_path / "transformers.mjs").write_text(f"{before}{with_transformers}")
    # In Node, unlike in browsers, it takes an address for a path.
    fetched = r"new Uint8Array(await (await fetch(\1)).arrayBuffer())"
    with_runtime = re.sub(r'(?<=create\()("[^"]*")', fetched, with_runtime)
    lines = with_runtime.replace("https://huggingface.co", hub.url).replace("pixels", "Uint8Array.from(pixels)")
    shape = f"const [height, width, pixels] = [30, 40, {pixels.ravel().tolist()}];"
    (tmp_path / "runtime.mjs").write_text(
        f"{lines.replace('const images', f'{shape} const images')}\n"
        "console.log(JSON.stringify([...probabilities.data]));"
    )

    def node(name: str) -> str:
        done = subprocess.run(["node", name], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    np.testing.assert_allclose(json.loads(node("runtime.mjs")), exports.answer(pixels)[0], rtol=1e-5)
    assert node("transformers.mjs").count("label:") == 5


def test_the_lines_for_openvino_answer(shown, tmp_path):
    pytest.importorskip("openvino")
    check_printed(*shown("openvino", exports.openvino_program(tmp_path)))


def test_the_lines_for_torch_answer(shown):
    check_printed(*shown("torch", {"classifier.pt2": exports.torch_program()}))


def test_the_lines_for_executorch_answer(shown):
    pytest.importorskip("executorch")
    check_printed(*shown("executorch", exports.executorch_program()))


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch", "executorch"])
def test_the_lines_for_a_folder_answer_too(format, run, tmp_path, capsys, monkeypatch):
    if format != "torch":
        pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    programs = {
        "onnx": lambda: {"classifier.onnx": exports.onnx_program()},
        "openvino": lambda: exports.openvino_program(tmp_path),
        "torch": lambda: {"classifier.pt2": exports.torch_program()},
        "executorch": exports.executorch_program,
    }
    for other in exports.FILES:
        shutil.rmtree(run / other)
    contents = programs[format]()
    exported(run, format, contents)
    folder = tmp_path / "a {b} 'c' é"
    shutil.copytree(run / format, folder)
    image = Image.fromarray(np.random.RandomState(0).randint(1, 256, (30, 40, 4), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    image.save("image.png")
    file = next(name for name in contents if name.endswith((".onnx", ".xml", ".pt2", ".pte")))
    capsys.readouterr()
    exec(lines_for_a_folder(format, str(folder), file), {"__name__": "__main__"})
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    answer = exports.answer(np.array(white)[None])[0]
    check_printed(capsys.readouterr().out, f"{answer.argmax()} {answer.max():.4f}")
