"""What a probe is worth, for people: on a terminal, and in the card beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ...errors import counted
from ...hub.markdown import escape_markdown, table_cell
from ...hub.usage import usage
from ..sections import Estimate

_MOST_SHOWN = 10  # classes on a terminal, the worst ones
_OF = {"cross_validation": "cross-validated", "validation": "validation images", "test": "test images"}


def accuracy_of(about: Mapping[str, Any]) -> Estimate:
    """The cross-validated accuracy of a probe, of the content of its `PROBE_FILE`."""
    return Estimate(**about["cross_validation"]["accuracy"])


def backbone_of(about: Mapping[str, Any]) -> str:
    """The name of a probe's backbone, with its commit if it has one."""
    backbone = about["backbone"]
    return backbone["name_or_path"] + (f" at commit {backbone['revision'][:12]}" if backbone["revision"] else "")


def in_words(about: Mapping[str, Any]) -> str:
    """What has come of a probe, in lines."""
    cross = about["cross_validation"]
    lines = [f"top-1 accuracy, with its 95 % interval, of a linear classifier on the features of {backbone_of(about)}"]
    lines.append("")
    width = max(map(len, _OF.values()))
    for name, words in _OF.items():
        if name in about:
            lines.append(f"  {words:<{width}}  {_accuracy(about[name])}")
    lines.append(f"  {'always the most frequent class':<{width}}  {cross['majority_accuracy']:.4f}")
    lines.append("")
    ranked = _classes(cross)
    title = "recall of each class" if len(ranked) <= _MOST_SHOWN else f"recall of the {_MOST_SHOWN} worst classes"
    lines.append(f"{title}, cross-validated; balanced accuracy {cross['balanced_accuracy']:.4f}")
    lines.append("")
    shown = ranked[:_MOST_SHOWN]
    width = min(max(len(name) for name, *_ in shown), 40)
    for name, number, recall in shown:
        lines.append(f"  {name[:width]:<{width}}  {recall or 'no images'}, {counted(number, 'image')}")
    lines += ["", *_notes(about)]
    return "\n".join(lines)


def card_of(about: Mapping[str, Any]) -> str:
    """The README of a probe's folder, as Markdown."""
    backbone, cross = about["backbone"], about["cross_validation"]
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-classification"}
    if backbone["revision"]:
        front["base_model"] = backbone["name_or_path"]
    front["tags"] = ["linear-probe"]
    name = escape_markdown(backbone_of(about) if backbone["revision"] else "a backbone from a local folder")
    rows = [
        f"| {words} | {_accuracy(about[key])} | {about[key]['num_images']:,} |"
        for key, words in _OF.items()
        if key in about
    ]
    classes = [
        f"| {table_cell(label)} | {'no images' if recall is None else recall} | {number:,} |"
        for label, number, recall in _classes(cross)
    ]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        "# A linear probe",
        f"An image classifier of {len(classes):,} classes: {name} ({escape_markdown(backbone['architecture'])}), "
        "whose weights are as they were, with a head that a logistic regression on its features has given.",
        "## Accuracy",
        "\n".join(["| measured on | top-1 | images |", "|---|---|---|", *rows]),
        f"Always to answer the most frequent class would give {cross['majority_accuracy']:.4f}; the mean recall of "
        f"the classes is {cross['balanced_accuracy']:.4f}. {' '.join(_notes(about))}",
        "## Classes",
        "\n".join(["| class | recall, cross-validated | images |", "|---|---|---|", *classes]),
        "## Use",
        f"```python\n{usage('FOLDER')}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _notes(about: Mapping[str, Any]) -> list[str]:
    """What an accuracy in cross-validation is, and is not."""
    cross, times = about["cross_validation"], len(about["views"])
    lines = [
        f"Cross-validated: each of the {counted(cross['num_images'], 'image')} is answered to by a classifier of the "
        f"other folds ({about['num_folds']} in all); how its features are scaled ({about['scaling']}), and "
        f"how strongly it is regularised (C = {about['strength']:g}), was chosen by the log loss on the same folds."
    ]
    if times > 1:
        lines.append(f"Each image is learnt from in {times} views, and answered to as a whole.")
    if about["num_repeated"]:
        what = (
            "is the copy of another one, or its mirror image"
            if about["num_repeated"] == 1
            else ("are copies of others, or their mirror images")
        )
        lines.append(f"{counted(about['num_repeated'], 'image')} {what}: such are held out together.")
    if about["num_skipped"]:
        lines.append(f"{counted(about['num_skipped'], 'image')} could not be decoded, and are left out.")
    return lines


def _accuracy(measured: Mapping[str, Any]) -> str:
    return str(Estimate(**measured["accuracy"]))


def _classes(measured: Mapping[str, Any]) -> Sequence[tuple[str, int, Estimate | None]]:
    """Name, number of images and recall of each class; the worst first, those without images last."""
    found = [
        (name, of_class["num_images"], None if of_class["recall"] is None else Estimate(**of_class["recall"]))
        for name, of_class in measured["classes"].items()
    ]
    return sorted(found, key=lambda one: 2.0 if one[2] is None else one[2].value)
