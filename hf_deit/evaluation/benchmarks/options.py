"""What several benchmarks ask of their options."""

from collections.abc import Sequence

from ...errors import InputError, did_you_mean


def check_arms(arms: Sequence[str], known: Sequence[str]) -> None:
    """Refuses arms that there are not.

    Raises:
        InputError: names the first of them, and what it may mean.
    """
    for arm in arms:
        if arm not in known:
            raise InputError(f"--arms must be of {', '.join(known)}, got {arm!r}{did_you_mean(arm, known)}")


def check_distilled(student: str) -> None:
    """Refuses a student without a distillation token.

    Raises:
        InputError: it has none.
    """
    if "distilled" not in student:
        raise InputError(f"--student must be a distilled DeiT, as deit_tiny_distilled_patch16_224, got {student!r}")
