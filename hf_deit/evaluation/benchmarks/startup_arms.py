"""What runs in the processes of `startup`: from nothing to the first training step, with the time at each stage.

Libraries are loaded in the functions: what an arm does not need is not in its time.
"""

import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .memory import peak_memory

# What is waited for, in turn: libraries and options; the images' list and its checks; the model and what trains it;
# workers and the batch that they give first; the step that it makes.
STAGES = ("imports", "images", "model", "first batch", "first step")
MEMORY = "memory"  # the most bytes of the process, beside the stages
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Start:
    """How to begin a training.

    Attributes:
        arm: of `ARMS`.
        layout: "folders" of classes, or "parquet".
        images: the folder.
        output: a folder for what is written.
        image_size: in pixels.
        batch_size: views of a step.
        num_workers: of the loader.
        began: when its process was begun, by `time.time`.
    """

    arm: str
    layout: str
    images: str
    output: str
    image_size: int
    batch_size: int
    num_workers: int
    began: float

    @property
    def marks(self) -> str:
        """The file with the seconds from the beginning to the end of each stage."""
        return os.path.join(self.output, "marks.json")


def main() -> None:
    """Begins the training that the command line tells, and ends with its first step."""
    start = Start(**json.loads(sys.argv[1]))
    found: dict[str, float] = {}

    def mark(stage: str) -> None:
        found.setdefault(stage, time.time() - start.began)
        if stage == STAGES[-1]:
            with open(start.marks, "w") as file:
                json.dump({**found, MEMORY: peak_memory("cpu")}, file)
            sys.stdout.flush()
            os._exit(0)  # what follows a run is not waited for

    ARMS[start.arm](start, mark)
    raise RuntimeError("the training has ended without a step")


def command_line(start: Start) -> str:
    """What a process is asked for."""
    return json.dumps(asdict(start))


def _ours(start: Start, mark: Callable[[str], None]) -> None:
    """`hf-deit train` as it is, in which the ends of the stages are noted."""
    from ...data import load
    from ...training.trainer import DistillationTrainer

    def load_data(*given: Any, **named: Any) -> Any:
        mark("imports")
        data = own_load_data(*given, **named)
        mark("images")
        return data

    def prepare(*given: Any, **named: Any) -> None:
        own_init(*given, **named)
        mark("model")

    own_load_data, load.load_data = load.load_data, load_data
    own_init, DistillationTrainer.__init__ = DistillationTrainer.__init__, prepare
    _mark_steps(mark)
    where = {"folders": "--train_dir", "parquet": "--dataset_name"}[start.layout]
    options = {
        where: start.images,
        "--student": "deit_tiny_distilled_patch16_224",
        "--distillation_type": "none",
        "--image_size": start.image_size,
        "--per_device_train_batch_size": start.batch_size,
        "--dataloader_num_workers": start.num_workers,
        "--dataloader_persistent_workers": start.num_workers > 0,
        "--max_steps": 1,
        "--output_dir": os.path.join(start.output, "run"),
    }
    sys.argv = ["hf-deit", "train", *(str(word) for option in options.items() for word in option)]
    runpy.run_module("hf_deit", run_name="__main__")


def _transformers(start: Start, mark: Callable[[str], None]) -> None:
    """A script with transformers' Trainer, its DeiT, and datasets."""
    import datasets
    from torchvision import transforms
    from transformers import DeiTConfig, DeiTForImageClassification, Trainer, TrainingArguments, default_data_collator

    mark("imports")
    if start.layout == "folders":
        data = datasets.load_dataset("imagefolder", data_dir=start.images, split="train")
    else:
        data = datasets.load_dataset(start.images, split="train")
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(start.image_size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandAugment(),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
            transforms.RandomErasing(),
        ]
    )

    def views(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"pixel_values": [augment(image.convert("RGB")) for image in rows["image"]], "labels": rows["label"]}

    names = data.features["label"].names
    data = data.with_transform(views)
    mark("images")
    args = TrainingArguments(
        output_dir=os.path.join(start.output, "run"),
        per_device_train_batch_size=start.batch_size,
        dataloader_num_workers=start.num_workers,
        max_steps=1,
        remove_unused_columns=False,
        report_to="none",
    )
    tiny = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    model = DeiTForImageClassification(DeiTConfig(**tiny, image_size=start.image_size, num_labels=len(names)))
    trainer = Trainer(model, args, train_dataset=data, data_collator=default_data_collator)
    mark("model")
    _mark_steps(mark)
    trainer.train()


def _mark_steps(mark: Callable[[str], None]) -> None:
    """Notes the first batch and the first step of any Trainer."""
    from transformers import Trainer
    from transformers.trainer_callback import DefaultFlowCallback

    own_step, own_end = Trainer.training_step, DefaultFlowCallback.on_step_end

    def step(*given: Any, **named: Any) -> Any:
        mark("first batch")
        return own_step(*given, **named)

    def end(*given: Any, **named: Any) -> Any:
        mark("first step")
        return own_end(*given, **named)

    Trainer.training_step, DefaultFlowCallback.on_step_end = step, end


def _timm(start: Start, mark: Callable[[str], None]) -> None:
    """A script with timm's data set, loader and model."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader

    mark("imports")
    if start.layout == "folders":
        data = create_dataset("", root=start.images, is_training=True)
    else:
        data = create_dataset(f"hfds/{start.images}", root=None, split="train", is_training=True)
    mark("images")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    labels = len(data.reader.class_to_idx) if start.layout == "folders" else _labels_of(data)
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=start.image_size, num_classes=labels).to(
        device
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    mark("model")
    loader = create_loader(
        data,
        input_size=(3, start.image_size, start.image_size),
        batch_size=start.batch_size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        interpolation="bicubic",
        num_workers=start.num_workers,
        persistent_workers=start.num_workers > 0,
        device=device,
    )
    for pixels, targets in _first(loader):
        mark("first batch")
        loss = torch.nn.functional.cross_entropy(model(pixels), targets)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        mark("first step")


def _labels_of(data: Any) -> int:
    return data.reader.dataset.features[data.reader.label_key].num_classes


def _first(loader: Any) -> Iterator[Any]:
    yield next(iter(loader))


ARMS = {"hf_deit": _ours, "transformers": _transformers, "timm": _timm}
