"""The formats of exports: what each needs, which function makes it, and what runs it. Loads no library."""

from dataclasses import dataclass

# What the classifier was trained with. It may be there where a runtime is torch itself.
TRAINED_WITH = ("transformers", "timm", "accelerate", "hf_deit.models", "hf_deit.evaluation")
TORCH = ("torch", "torchvision")


@dataclass(frozen=True)
class Runtime:
    """What an exported classifier runs in.

    Attributes:
        runner: a function of `running.py`.
        packages: whose versions are told.
        blocked: packages that cannot be imported there.
    """

    runner: str
    packages: tuple[str, ...]
    blocked: tuple[str, ...] = (*TORCH, *TRAINED_WITH)


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        words: its name for people.
        extra: of the package, that installs what it needs; None for none.
        export: module and function of `programs` that write the float files into a folder.
        classifier, quantized: the file, and the one in int8, that answers to images, or is run with the reference
            preprocessor beside it.
        models: other files that can be opened, which take `pixel_values`.
        runtime: that the answers are made in.
    """

    words: str
    extra: str | None
    export: str
    classifier: str
    quantized: str | None
    models: tuple[str, ...]
    runtime: Runtime


BY_NAME = {
    "onnx": Format(
        words="ONNX",
        extra="export",
        export="onnx_program.export_onnx",
        classifier="classifier.onnx",
        quantized="classifier_quantized.onnx",
        models=("model.onnx", "model_quantized.onnx"),
        runtime=Runtime("open_onnx", ("onnxruntime",)),
    ),
    "openvino": Format(
        words="OpenVINO",
        extra="openvino",
        export="openvino_program.export_openvino",
        classifier="classifier.xml",
        quantized="classifier_quantized.xml",
        models=(),
        runtime=Runtime("open_openvino", ("openvino",)),
    ),
    "executorch": Format(
        words="ExecuTorch",
        extra="executorch",
        export="executorch_program.export_executorch",
        classifier="model.pte",
        quantized="model_quantized.pte",
        models=(),
        runtime=Runtime("open_executorch", ("executorch", "torch"), blocked=TRAINED_WITH),
    ),
    "torch": Format(
        words="torch.export",
        extra=None,
        export="torch_program.export_torch",
        classifier="classifier.pt2",
        quantized=None,
        models=(),
        runtime=Runtime("open_torch", ("torch",), blocked=TRAINED_WITH),
    ),
}
