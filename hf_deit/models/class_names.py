"""Names of labels: whether a teacher, a student and data have the same ones, and in which order."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ..errors import InputError, nearest_names, shortlist

# The Hub's imagenet-1k tells its two cranes apart, as ClassLabel wants unique names; ImageNet's own list does not.
_ALIASES = {"crane2": "crane"}
# Labels in a message that shall name all, those of them with the nearest ones, and spellings to compare for these.
_MOST_NAMED, _MOST_EXPLAINED, _MOST_COMPARED = 100, 20, 60_000


def composed(name: object) -> str:
    """A name as names are compared: in Unicode's composed form (NFC). macOS gives those of folders decomposed."""
    return unicodedata.normalize("NFC", str(name))


def in_order(labels: Mapping[int, str]) -> list[str]:
    """The names of labels, from index 0 on."""
    return [labels[index] for index in sorted(labels)]


def are_unnamed(labels: Iterable[str]) -> bool:
    """Whether labels are called what transformers calls those of a model that names none."""
    return all(re.fullmatch(r"LABEL_\d+", label) for label in labels)


def unique_names(id2label: Mapping[int, object]) -> dict[int, str]:
    """Tells labels apart that share a name, as two cranes do in ImageNet: "crane (134)" and "crane (517)".

    Each of them gets its index, the first one too: a bare "crane" would be either. Names that are unique stay as they
    are, so that doing it again changes nothing; one that is there already is not given a second time.

    Args:
        id2label: names of labels by index; they may repeat.
    """
    names = {int(index): str(name) for index, name in id2label.items()}
    count = Counter(map(composed, names.values()))

    def of_its_own(index: int, name: str) -> str:
        while composed(name) in count:
            name = f"{name} ({index})"
        return name

    return {index: of_its_own(index, name) if count[composed(name)] > 1 else name for index, name in names.items()}


def which_of(name: str, names: Iterable[str]) -> str:
    """The end of a message about a name that `unique_names` has made several of; "" if it is none of them."""
    made = [unique for unique in names if re.fullmatch(rf"{re.escape(name)} \(\d+\)", unique)]
    return f"; {name!r} is {' or '.join(made)}" if made else ""


def match_labels(teacher: Mapping[int, str], student: Mapping[int, str], owner: str = "the teacher") -> list[int]:
    """Finds the teacher's index of each of the student's labels.

    Names that are equal belong together, whatever their order. Those of the others do that are equal without regard to
    case, underscores and blanks, where no third label is equal to them so. Where all labels keep their places, a pair
    of names need only share one synonym ("tench" and "tench, Tinca tinca") that no other label has. One label in a
    hundred may share its synonym with another (ImageNet has two maillots): the other labels show the order. A name
    that one side repeats, and that `unique_names` has made unique in the other, is the same.

    Args:
        teacher, student: labels by index, 0 to K - 1. Names may repeat, if all labels keep their places.
        owner: the subject of the error message, whose labels are `teacher`.

    Returns:
        K indices: the teacher's `logits[:, indices]` are in the student's order.

    Raises:
        InputError: the numbers of labels differ, or the labels do, or it cannot be known which is which.
    """
    count = len(student)
    if sorted(teacher) != list(range(count)) or sorted(student) != list(range(count)):
        raise InputError(
            f"{owner} has {len(teacher)} labels ({_some(teacher)}), expected {count} ({_some(student)}): fine-tune it "
            "on this data first (--distillation_type none --replace_head --student …), or take another one"
        )
    spelt = _spelled_alike(*({i: composed(label) for i, label in labels.items()} for labels in (teacher, student)))
    theirs, ours = ([labels[index] for index in range(count)] for labels in spelt)
    found = dict(_pairs(theirs, ours, spelling=str))
    found = {**dict(_pairs(theirs, ours, spelling=_normalized)), **found}
    if len(found) == count:
        return [found[index] for index in range(count)]
    if all(one == other for one, other in found.items()) and _are_in_the_same_order(theirs, ours):
        return list(range(count))
    known = Counter(map(_normalized, theirs))
    unclear = [student[index] for index in range(count) if index not in found]
    missing = [name for name in unclear if _normalized(composed(name)) not in known]
    doubtful = [name for name in unclear if name not in missing]
    raise InputError(
        f"{owner} has {count} labels as expected, but not the same: it has {_some(teacher)}, expected {_some(student)}"
        + (f"; it lacks {shortlist(missing)}" if missing else "")
        + (f"; which of its labels is meant is not clear of {shortlist(doubtful)}" if doubtful else "")
        + ". If only the names differ, set id2label in its config.json, in the order of its logits"
    )


def choose_labels(teacher: Mapping[int, str], student: Mapping[int, str], owner: str = "the teacher") -> list[int]:
    """Finds the student's labels among those of a teacher that may have more.

    Names that are equal belong together; then those that are equal without regard to case, underscores and blanks,
    where no third label is equal to them so; then a name and the one label with which it shares a synonym ("tench" and
    "tench, Tinca tinca"). A name that the teacher repeats is meant as `unique_names` makes it.

    Args:
        teacher: labels by index, 0 to N - 1; names may repeat.
        student: labels by index, 0 to K - 1.
        owner: the subject of the error message, whose labels are `teacher`.

    Returns:
        K different indices: the teacher's `logits[:, indices]` are in the student's order.

    Raises:
        InputError: some are not among them, all of which are named with the nearest; or which one is meant is not
            clear; or indices are missing.
    """
    if sorted(teacher) != list(range(len(teacher))):
        raise InputError(f"{owner} has {len(teacher)} labels, but not with the indices 0 to {len(teacher) - 1}")
    meant = _meant(teacher, student)
    names, unique = [composed(name) for name in in_order(student)], unique_names(teacher)
    taken = Counter(place for places in meant if len(places) == 1 for place in places)
    missing = [name for name, places in zip(names, meant, strict=True) if not places]
    doubtful = [
        f"{name!r} ({' or '.join(repr(unique[place]) for place in sorted(places))})"
        for name, places in zip(names, meant, strict=True)
        if len(places) > 1 or any(taken[place] > 1 for place in places)
    ]
    if missing or doubtful:
        known = list(dict.fromkeys(part.strip() for label in in_order(teacher) for part in str(label).split(",")))
        explained = max(1, min(_MOST_EXPLAINED, _MOST_COMPARED // max(len(known), 1)))
        lacked = [_with_nearest(name, known) for name in missing[:explained]] + [*map(repr, missing[explained:])]
        unclear = shortlist(doubtful, _MOST_NAMED)
        raise InputError(
            f"{owner} has {len(teacher)} labels ({_some(teacher)}), but not all that are expected ({_some(student)})"
            + (f"; it lacks {shortlist(lacked, _MOST_NAMED)}" if missing else "")
            + (f"; which of its labels is meant is not clear of {unclear}" if doubtful else "")
            + ". Call the classes as it does, or take another one"
        )
    return [place for places in meant for place in places]


def are_among(teacher: Mapping[int, str], student: Mapping[int, str]) -> bool:
    """Whether `choose_labels` finds all of the student's labels."""
    meant = _meant(teacher, student)
    return all(len(places) == 1 for places in meant) and len(set().union(*meant)) == len(meant)


def _meant(teacher: Mapping[int, str], student: Mapping[int, str]) -> list[set[int]]:
    """For each of the student's labels the teacher's that it may mean; see `choose_labels`."""
    wanted, unique = {_normalized(label) for label in student.values()}, unique_names(teacher)
    theirs = [composed(unique[i] if _normalized(unique[i]) in wanted else teacher[i]) for i in sorted(teacher)]
    ours = [composed(name) for name in in_order(student)]
    found = {**dict(_pairs(theirs, ours, spelling=_normalized)), **dict(_pairs(theirs, ours, spelling=str))}
    owners = defaultdict(set)
    for place, label in enumerate(theirs):
        for synonym in _synonyms(label):
            owners[synonym].add(place)
    return [
        {found[index]} if index in found else set().union(*(owners.get(part, ()) for part in _synonyms(name)))
        for index, name in enumerate(ours)
    ]


def _with_nearest(name: str, known: Sequence[str]) -> str:
    """A name with up to three that could be meant: those that have all its words, or else the one that looks alike."""
    wanted = set(_plain(name).split())
    near = sorted((one for one in known if wanted <= set(_plain(one).split())), key=len)[:3]
    near = near or nearest_names(name, known)
    return repr(name) + (f" (did you mean {' or '.join(map(repr, near))}?)" if near else "")


def label_changes(before: Sequence[str], now: Sequence[str]) -> str:
    """What has become of labels since a model learnt them, in words; "" if names, number and order are the same.

    Args:
        before, now: the names by index.
    """
    places_before, places_now = _places(map(composed, before)), _places(map(composed, now))
    if places_before == places_now:
        return ""
    removed = [name for name in places_before if name not in places_now]
    added = [name for name in places_now if name not in places_before]
    added_at = {tuple(places_now[name]): name for name in added}
    successors = {name: added_at.get(tuple(places_before[name])) for name in removed}
    renamed = [(old, new) for old, new in successors.items() if new is not None]
    moved = [name for name in places_before if places_before[name] != places_now.get(name, places_before[name])]
    paired = {name for pair in renamed for name in pair}
    parts = {
        "renamed": [f"{old!r} to {new!r}" for old, new in renamed],
        "removed": [repr(name) for name in removed if name not in paired],
        "added": [repr(name) for name in added if name not in paired],
        "moved": [f"{name!r} from {_listed(places_before[name])} to {_listed(places_now[name])}" for name in moved],
    }
    number = [f"{len(before)} labels then, {len(now)} now"] if len(before) != len(now) else []
    return "; ".join([*number, *(f"{what}: {shortlist(names, 10)}" for what, names in parts.items() if names)])


def check_distinct(names: Iterable[str], owner: str) -> None:
    """Refuses two classes whose names differ in their Unicode form alone, which look the same everywhere.

    Args:
        owner: the subject of the error message.

    Raises:
        InputError: there are such.
    """
    twice = [name for name, places in _places(map(composed, names)).items() if len(places) > 1]
    if twice:
        raise InputError(
            f"{owner} has two classes of the same name, {shortlist(twice)}, in two Unicode forms (composed and "
            "decomposed): make them one"
        )


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    places = defaultdict(list)
    for index, name in enumerate(names):
        places[name].append(index)
    return dict(places)


def _listed(places: list[int]) -> str:
    return " and ".join(map(str, places))


def _pairs(theirs: list[str], ours: list[str], spelling: Callable[[str], str]) -> Iterator[tuple[int, int]]:
    """Our and their index of each name that both have once, in a spelling."""
    places = _places(map(spelling, theirs))
    for name, here in _places(map(spelling, ours)).items():
        there = places.get(name, [])
        if len(here) == len(there) == 1:
            yield here[0], there[0]


def _spelled_alike(
    teacher: Mapping[int, str], student: Mapping[int, str]
) -> tuple[Mapping[int, str], Mapping[int, str]]:
    """Both, with the names that one side repeats and the other has made unique in one spelling."""
    wanted = {_normalized(label) for label in student.values()}
    unique = unique_names(teacher)
    # The index in a unique name is the teacher's, wherever the student has the label.
    teacher = {i: unique[i] if _normalized(unique[i]) in wanted else label for i, label in teacher.items()}
    teacher = _repeating(teacher, student)
    return teacher, _repeating(student, teacher)


def _repeating(labels: Mapping[int, str], others: Mapping[int, str]) -> Mapping[int, str]:
    """Labels as they were before `unique_names`, where the others have that name, or a synonym, at the same index."""
    before = {i: str(label).removesuffix(f" ({i})") for i, label in labels.items()}
    count, known = Counter(before.values()), {_normalized(label) for label in others.values()}
    return {
        i: before[i]
        if count[before[i]] > 1 and _normalized(label) not in known and _synonyms(before[i]) & _synonyms(others[i])
        else label
        for i, label in labels.items()
    }


def _are_in_the_same_order(teacher: list[str], student: list[str]) -> bool:
    owners = Counter(synonym for labels in (teacher, student) for label in labels for synonym in _synonyms(label))
    ambiguous = 0
    for one, other in zip(teacher, student, strict=True):
        shared = _synonyms(one) & _synonyms(other)
        if not shared:
            return False
        if one != other and not any(owners[synonym] == 2 for synonym in shared):
            if _plain(one) == _plain(other):  # but for case and blanks, as a third label is, too
                return False
            ambiguous += 1
    return ambiguous <= len(teacher) // 100


def _plain(label: str) -> str:
    return " ".join(composed(label.casefold()).replace("_", " ").split())


def _normalized(label: str) -> str:
    plain = _plain(label)
    return _ALIASES.get(plain, plain)


def _synonyms(label: str) -> set[str]:
    return {_normalized(label)} | {_normalized(part) for part in label.split(",")}


def _some(labels: Mapping[int, str]) -> str:
    return shortlist(in_order(labels), 3)
