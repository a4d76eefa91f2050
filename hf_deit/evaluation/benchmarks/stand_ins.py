"""What stands in for images and teachers in benchmarks: noise and random weights cost what real ones do."""

from io import BytesIO

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from ...models.teacher import Teacher, TeacherDescription

NUM_LABELS = 1000


def photographs(
    count: int, *, different: int = 256, size: tuple[int, int] = (500, 375), seed: int = 0
) -> datasets.Dataset:
    """JPEG images about as smooth and, by default, as large as ImageNet's, with random labels.

    Args:
        count: rows.
        different: images; others are these again.
        size: (width, height) in pixels.
        seed: of pixels and labels.
    """
    generator, (width, height) = np.random.default_rng(seed), size
    images = []
    for _ in range(different):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(size)
        noisy = np.asarray(coarse, dtype=np.int16) + generator.normal(0, 8, (height, width, 1)).astype(np.int16)
        stream = BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        images.append({"bytes": stream.getvalue(), "path": None})
    names = [f"class {index}" for index in range(NUM_LABELS)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    labels = generator.integers(0, NUM_LABELS, different)
    data = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    return data.select(np.arange(count) % different)


def random_teacher(name: str, image_size: int, dtype: torch.dtype) -> Teacher:
    """A timm model with random weights, which serves for time, as a teacher that takes the student's pixels."""
    config = TimmWrapperConfig(architecture=name, num_labels=NUM_LABELS)
    model = TimmWrapperForImageClassification(config).to(dtype)
    description = TeacherDescription(
        name_or_path=f"timm/{name}",
        revision="0" * 40,
        wanted_revision=None,
        dtype=dtype,
        id2label={index: f"class {index}" for index in range(NUM_LABELS)},
        label_order=list(range(NUM_LABELS)),
        channel_order=[0, 1, 2],
        scale=[1.0] * 3,
        shift=[0.0] * 3,
        processor_size=(image_size, image_size),
        own_size=(image_size, image_size),
        student_size=(image_size, image_size),
        sizes=((image_size, image_size),),
    )
    return Teacher(model, description, None)
