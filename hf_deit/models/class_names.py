"""Names of labels: whether a teacher and a student have the same ones, and in which order."""

from collections import Counter
from collections.abc import Mapping

from ..errors import InputError, shortlist

# The Hub's imagenet-1k tells its two cranes apart, as ClassLabel wants unique names; ImageNet's own list does not.
_ALIASES = {"crane2": "crane"}


def match_labels(teacher: Mapping[int, str], student: Mapping[int, str], owner: str = "the teacher") -> list[int]:
    """Finds the teacher's index of each of the student's labels.

    Names are compared without regard to case and underscores. Where all are equal and unique, their order may differ.
    Where the order is the same, a pair of names need only share one synonym ("tench" and "tench, Tinca tinca") that no
    other label has. One label in a hundred may share its synonym with another (ImageNet has two maillots): the other
    labels show the order.

    Args:
        teacher, student: labels by index, 0 to K - 1.
        owner: the subject of the error message, whose labels are `teacher`.

    Returns:
        K indices: the teacher's `logits[:, indices]` are in the student's order.

    Raises:
        InputError: the numbers of labels differ, or the labels do.
    """
    count = len(student)
    if sorted(teacher) != list(range(count)) or sorted(student) != list(range(count)):
        raise InputError(
            f"{owner} has {len(teacher)} labels ({_some(teacher)}), expected {count} ({_some(student)}): fine-tune it "
            "on this data first (--distillation_type none --replace_head --student …), or take another one"
        )
    positions = {_normalized(label): index for index, label in teacher.items()}
    wanted = [_normalized(student[i]) for i in range(count)]
    if len(positions) == count and sorted(positions) == sorted(wanted):
        return [positions[label] for label in wanted]
    if _are_in_the_same_order([teacher[i] for i in range(count)], [student[i] for i in range(count)]):
        return list(range(count))
    missing = [student[i] for i in range(count) if wanted[i] not in positions]
    raise InputError(
        f"{owner} has {count} labels as expected, but not the same: it has {_some(teacher)}, expected {_some(student)}"
        + (f"; it lacks {shortlist(missing)}" if missing else "")
        + ". If only the names differ, set id2label in its config.json, in the order of its logits"
    )


def _are_in_the_same_order(teacher: list[str], student: list[str]) -> bool:
    owners = Counter(synonym for labels in (teacher, student) for label in labels for synonym in _synonyms(label))
    ambiguous = 0
    for one, other in zip(teacher, student, strict=True):
        shared = _synonyms(one) & _synonyms(other)
        if not shared:
            return False
        if _normalized(one) != _normalized(other) and not any(owners[synonym] == 2 for synonym in shared):
            ambiguous += 1
    return ambiguous <= len(teacher) // 100


def _normalized(label: str) -> str:
    label = " ".join(str(label).casefold().replace("_", " ").split())
    return _ALIASES.get(label, label)


def _synonyms(label: str) -> set[str]:
    return {_normalized(label)} | {_normalized(part) for part in str(label).split(",")}


def _some(labels: Mapping[int, str]) -> str:
    return shortlist((labels[index] for index in sorted(labels)), 3)
