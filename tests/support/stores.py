"""Label stores of a teacher that is made up."""

from pathlib import Path
from typing import Any

import numpy as np

from hf_deit import TeacherLabelStore
from hf_deit.labels.identity import StoreIdentity

VIEWS = 64


def identity(**changes: Any) -> StoreIdentity:
    settings = {
        "teacher": {"name": "big/teacher", "revision": "c0ffee", "dtype": "float32", "preprocessing": {"size": 224}},
        "data": {"name": "user/data", "config": "all", "revision": "beef", "rows": 60, "fingerprint": "f00d"},
        "augmentation": {"auto_augment": "rand-m9", "crop_scale": (0.08, 1.0), "mixup": 0.8},
        "versions": {"timm": "1.0", "pillow": "12.0"},
        "seed": 3,
        "group_size": 8,
        "repeated_augmentation": 3,
        "views_per_epoch": VIEWS,
        "num_labels": 10,
    }
    return StoreIdentity(**{**settings, **changes})


def verdicts(epoch: int = 0, views: int = VIEWS, num_labels: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's labels, and the true ones, of which every fifth is missing."""
    generator = np.random.default_rng(epoch)
    true_labels = generator.integers(0, num_labels, views)
    labels = np.where(generator.random(views) < 0.75, true_labels, generator.integers(0, num_labels, views))
    return labels, np.where(np.arange(views) % 5 == 0, -100, true_labels)


def record(store: TeacherLabelStore, epoch: int = 0, slots: Any = None, **changes: Any) -> None:
    slots = np.arange(store.identity.views_per_epoch) if slots is None else np.asarray(slots)
    labels, true_labels = verdicts(epoch, store.identity.views_per_epoch, store.identity.num_labels)
    store.record(epoch, slots, labels[slots], true_labels[slots], **{"crcs": slots + 7, **changes})


def fill(folder: Path, epochs: int = 1, **changes: Any) -> Path:
    with TeacherLabelStore.open(folder, identity(**changes)) as store:
        for epoch in range(epochs):
            record(store, epoch)
            store.flush()
            assert store.finish_epoch(epoch)
    return folder


def assert_holds(store: TeacherLabelStore, epoch: int = 0) -> None:
    labels, true_labels = verdicts(epoch, store.identity.views_per_epoch, store.identity.num_labels)
    np.testing.assert_array_equal(store.labels(epoch, true_labels), labels)


def files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path != ".lock")
