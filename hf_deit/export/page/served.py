"""A page that is served from here, with the model in PyTorch behind it: what it answers to an image, where it looks.

Gradio shows it. Nothing of it asks for anything outside: neither fonts nor scripts, and nothing is told of its use.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.decoding import decode_image
from ...errors import BadImageError, InputError
from ...evaluation.answers.verdicts import CLASS, DISTILLATION
from ...evaluation.attention.attention import METHODS_IN_WORDS, overlays
from ...evaluation.attention.attention_maps import METHODS, has_attention_maps
from ...evaluation.classifiers.classifiers import Classifier, describe_classifiers, labels_of
from ...models.class_names import unique_names
from ..requirements import require

HOST = "127.0.0.1"
API_NAME = "classify"  # by which clients ask: image and method → answer, answers of two heads, pictures
_PORT = 7860  # and 99 more, where none is given
_TOP = 5
_WORDS = {CLASS: "class", DISTILLATION: "distillation"}
# What a browser may load for the page: nothing but what comes from here.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'"
)


@dataclass(frozen=True)
class ServedAnswer:
    """What is shown of an image.

    Attributes:
        fused: the best labels, at most 5, best first, with their probabilities, by which the model answers.
        heads: likewise of each head, by its name; empty of a model with one.
        overlays: where each token looks, (H, W, 3) uint8, by its name; empty of models without such tokens.
    """

    fused: dict[str, float]
    heads: dict[str, dict[str, float]]
    overlays: dict[str, np.ndarray]


class Answering:
    """Answers of a classifier, one image at a time.

    Args:
        classifier: whose labels are in its own order.
        labels: (K) names.
    """

    def __init__(self, classifier: Classifier, labels: tuple[str, ...]) -> None:
        self.classifier = classifier
        self._labels = [*unique_names(dict(enumerate(labels))).values()]
        self._lock = threading.Lock()  # the attention is recorded by hooks on the model

    @property
    def shows_attention(self) -> bool:
        """Whether it is known where the model looks."""
        return has_attention_maps(self.classifier.model)

    def answer(self, path: str, method: str = METHODS[0]) -> ServedAnswer:
        """What the model says of an image.

        Args:
            path: of its file.
            method: of the attention, one of `METHODS`.

        Raises:
            BadImageError: it cannot be decoded.
        """
        image = decode_image({"path": path, "bytes": None}, "the page")
        with self._lock:
            pixel_values = self.classifier.preprocess(image)
            logits = {name: values.numpy() for name, values in self.classifier.logits(pixel_values[None]).items()}
            shown = overlays(self.classifier, pixel_values, method) if self.shows_attention else {}
        by_head = {name: self._best(values[0]) for name, values in logits.items()}
        return ServedAnswer(
            fused=self._best(self.classifier.rule.scores(logits)[0]),
            heads=by_head if len(by_head) > 1 else {},
            overlays=shown,
        )

    def _best(self, scores: np.ndarray) -> dict[str, float]:
        probabilities = torch.softmax(torch.from_numpy(scores).double(), dim=0).numpy()
        best = np.argsort(-probabilities, kind="stable")[:_TOP]
        return {self._labels[index]: float(probabilities[index]) for index in best}


def page(answering: Answering, examples: Sequence[str] = ()) -> Any:
    """The page, as `gradio.Blocks`.

    Args:
        answering: what answers on it.
        examples: paths of images that it offers.
    """
    import gradio

    classifier = answering.classifier
    heads = [CLASS, DISTILLATION] if classifier.has_two_heads else []

    def classify(path: str | None, method: str) -> list[Any]:
        if path is None:
            return [None] * (1 + len(heads) + answering.shows_attention)
        try:
            answer = answering.answer(path, method)
        except BadImageError as error:
            told = f"This image cannot be read: {error.reason}"
            raise gradio.Error(told, duration=None, print_exception=False) from error
        shown = [(picture, f"{_WORDS[token]} token") for token, picture in answer.overlays.items()]
        pictures = [shown] if answering.shows_attention else []
        return [answer.fused, *(answer.heads[head] for head in heads), *pictures]

    with gradio.Blocks(
        title=classifier.name, analytics_enabled=False, fill_width=False, delete_cache=(3600, 3600)
    ) as blocks:
        gradio.Markdown(f"# {_plain(classifier.name)}\n\nDrop an image, paste one, or take the camera.")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(
                    label="Image",
                    type="filepath",
                    image_mode=None,  # decoded here, as in training
                    sources=["upload", "webcam", "clipboard"],
                    height=360,
                    buttons=[],
                )
                # The file as it came: of one that is no image, Gradio would say but "Error".
                read = image.preprocess
                image.preprocess = lambda given: given.path if given is not None and given.path else read(given)
                method = gradio.Radio(
                    [(words, name) for name, words in METHODS_IN_WORDS.items()],
                    value=METHODS[0],
                    label="Attention by",
                    visible=answering.shows_attention,
                )
                if examples:
                    gradio.Examples([[path] for path in examples], inputs=[image], cache_examples=False)
            with gradio.Column():
                outputs = [gradio.Label(label=f"Answer, by {classifier.rule.words}", num_top_classes=_TOP, buttons=[])]
                if heads:
                    with gradio.Row():
                        outputs += [
                            gradio.Label(label=f"{_WORDS[head].capitalize()} head", buttons=[]) for head in heads
                        ]
                if answering.shows_attention:
                    gradio.Markdown("### Where its tokens look")
                    outputs.append(
                        gradio.Gallery(
                            label="Where its tokens look", show_label=False, columns=2, format="png", buttons=[]
                        )
                    )
        gradio.on(
            [image.change, method.change],
            classify,
            inputs=[image, method],
            outputs=outputs,
            api_name=API_NAME,
            concurrency_limit=1,
            show_progress="hidden",  # which would say "Error" in each of the outputs
        ).failure(lambda: [None] * len(outputs), outputs=outputs, api_visibility="private")
    return blocks


def _plain(name: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!<>|~$" else letter for letter in name)


class _OnlyFromHere:
    """Tells browsers to load nothing from elsewhere."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self._app(scope, receive, with_policy if scope["type"] == "http" else send)


@contextmanager
def served(
    answering: Answering,
    *,
    examples: Mapping[str, bytes] = {},
    host: str = HOST,
    port: int | None = None,
    share: bool = False,
) -> Iterator[str]:
    """The page while it is served, by its address. What is uploaded goes with it.

    Args:
        answering: what answers on it.
        examples: PNG or JPEG files of images that it offers, by their names.
        host: address that it is reached by; by the default from this machine alone.
        port: None for a free one from 7860 on.
        share: whether Gradio's servers make it reachable from everywhere, for a week at most.

    Raises:
        InputError: Gradio is not installed, or the address cannot be had.
    """
    require("demo")
    with tempfile.TemporaryDirectory(prefix="hf_deit_demo_") as folder, _settings(folder):
        from gradio.themes import Base
        from starlette.middleware import Middleware

        paths = []
        for index, content in enumerate(examples.values()):
            suffix = ".png" if content.startswith(b"\x89PNG") else ".jpg"
            paths.append(os.path.join(folder, f"example_{index}{suffix}"))
            with open(paths[-1], "wb") as file:
                file.write(content)
        blocks = page(answering, paths)
        fonts = ["system-ui", "sans-serif"]
        try:
            _, address, shared = blocks.launch(
                prevent_thread_lock=True,
                server_name=host,
                server_port=port,
                share=share,
                inbrowser=False,
                quiet=True,
                show_error=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                num_workers=0,
                enable_monitoring=False,
                footer_links=[],
                css=".gallery-item img { max-height: 7rem; object-fit: contain }",  # of examples
                run_history=False,
                theme=Base(font=fonts, font_mono=["ui-monospace", "monospace"]),
                allowed_paths=[folder],
                app_kwargs={"middleware": [Middleware(_OnlyFromHere)]},
            )
        except OSError as error:
            where = f"{host}:{port}" if port is not None else f"{host}, ports {_PORT} to {_PORT + 99}"
            raise InputError(f"the page cannot be served at {where} ({error}): give another --port") from error
        try:
            yield shared or address
        finally:
            blocks.close(verbose=False)


@contextmanager
def _settings(folder: str) -> Iterator[None]:
    """The environment in which Gradio sends nothing, and keeps what is uploaded in a folder."""
    loopback = f"{HOST},localhost"
    settings = {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": folder,
        **{name: ",".join(filter(None, (os.environ.get(name), loopback))) for name in ("NO_PROXY", "no_proxy")},
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def load_answering(model: str, *, use_cpu: bool = False) -> Answering:
    """A classifier that answers on a page.

    Args:
        model: a Hub id, "my/model@revision" for another revision than main, or a folder.
        use_cpu: whatever else there is.

    Raises:
        InputError: there is no such classifier, it has no labels, or it cannot be loaded.
    """
    labels = labels_of(model)
    device = "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"
    return Answering(describe_classifiers([model], labels)[0].load(device), tuple(labels))


_wait = time.sleep


def serve(
    model: str,
    *,
    say: Callable[[str], None],
    examples: Mapping[str, bytes] = {},
    host: str = HOST,
    port: int | None = None,
    share: bool = False,
    use_cpu: bool = False,
) -> None:
    """Serves the page until Ctrl+C, or until the process is told to end.

    Args:
        model, use_cpu: see `load_answering`.
        say: is given the address, once the page is there.
        examples, host, port, share: see `served`.

    Raises:
        InputError: see `load_answering` and `served`.
    """
    require("demo")  # before the model is loaded
    answering = load_answering(model, use_cpu=use_cpu)
    with (
        _ended_as_by_ctrl_c(),
        served(answering, examples=examples, host=host, port=port, share=share) as address,
        suppress(KeyboardInterrupt),
    ):
        say(address)
        while True:
            _wait(3600)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """What else ends a process ends it so, too, that nothing that was uploaded stays; in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
