"""The trained classifier that is exported, with all that an export says of it."""

from dataclasses import dataclass
from typing import Any

from ...errors import InputError, counted
from ...evaluation.classifiers.classifiers import Classifier, describe_classifiers, labels_of
from ...evaluation.classifiers.run_weights import Choice
from ...hub.report_in_card import preprocessing_digest
from ...models.class_names import are_unnamed
from ...models.pretrained import weights_digest
from .preprocessing import Preprocessing
from .processors import preprocessing_of


@dataclass(frozen=True)
class ExportSource:
    """What is exported.

    Attributes:
        classifier: in float32 on the CPU, in evaluation mode; its `label_order` is None. Its model's `logits` are the
            fused answer: a softmax of them gives the probabilities by which the model answers.
        labels: (K) names, in the order of the logits.
        preprocessing: see there.
        facts: of JSON's types, where the model comes from: "name_or_path" (of the Hub only; None for a folder),
            "revision" (the commit, or None), "weights_digest" and "preprocessing_digest" (of a folder, else None),
            "architecture", "model_type", "fusion" (or None).
    """

    classifier: Classifier
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    facts: dict[str, Any]


def load_source(model: str, *, weights: Choice = "published") -> ExportSource:
    """Loads a classifier to be exported.

    Args:
        model: a Hub id, "my/model@revision" for another revision than main, or a folder.
        weights: see `describe_classifiers`.

    Raises:
        InputError: there is no such classifier, it has no labels or does not choose one of them, or its preprocessing
            has no description.
    """
    labels = labels_of(model, weights)
    if are_unnamed(labels):
        raise InputError(
            f"the model {model!r} has no names for its {counted(len(labels), 'label')} (LABEL_0, …), which the export "
            "is to give: set id2label in its config.json, in the order of its logits"
        )
    description = describe_classifiers([model], labels, weights=weights)[0]
    classifier = description.load()
    config = classifier.model.config
    if config.num_labels == 1 or config.problem_type in ("multi_label_classification", "regression"):
        raise InputError(
            f"the model {model!r} does not choose one of its {counted(len(labels), 'label')} (problem_type "
            f"{config.problem_type!r}), and what is exported gives probabilities that add up to 1: export one that "
            "was trained to choose one of several labels"
        )
    weights_of, is_folder = description.weights, description.revision is None
    return ExportSource(
        classifier=classifier,
        labels=tuple(labels),
        preprocessing=preprocessing_of(description.processor, description.input_size),
        facts={
            "name_or_path": description.origin["name_or_path"] if not is_folder else None,
            "revision": description.revision,
            "weights_digest": weights_digest(weights_of.folder) if is_folder else None,
            "preprocessing_digest": preprocessing_digest(weights_of.processor_folder) if is_folder else None,
            "architecture": description.origin["architecture"],
            "model_type": config.model_type,
            "fusion": description.fusion,
        },
    )
