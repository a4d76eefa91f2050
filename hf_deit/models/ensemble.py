"""Several teachers as one: the weighted mean of their probabilities teaches."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..errors import InputError, brief, shortlist
from .answers import has_answer
from .class_names import in_order
from .execution import Execution
from .single_teacher import Teacher, TeacherDescription

_LEAST_PART = 1e-9  # of the largest weight; less than float32 tells apart


class TeacherEnsemble(nn.Module):
    """Several teachers of the same classes, of which the weighted mean of the softmaxes teaches.

    A view to which one of them gives no finite answer has none. The order of the teachers makes no difference, to the
    last bit, if each keeps its weight.

    Attributes:
        members: each a `Teacher`, with statistics and a size of its own.
        weights: of each, positive; their sum is 1.
        description: what was known of them before their weights were loaded.
        name_or_path: of all of them, in words.
        revision: None.
        id2label: their labels, in the student's order.
        dtype: that they compute in.
    """

    def __init__(self, members: Sequence[Teacher], description: "EnsembleDescription") -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.description = description
        self.weights = description.weights
        self.name_or_path = description.name_or_path
        self.revision = description.revision
        self.id2label = dict(description.id2label)
        self.dtype = members[0].dtype
        self.register_buffer("log_weights", torch.tensor(self.weights, dtype=torch.float64).log().float())
        self.register_buffer("_unanswered", torch.zeros(len(members), dtype=torch.int64))
        self.eval()

    def train(self, mode: bool = True) -> "TeacherEnsemble":
        """Stays in evaluation mode, as its members do."""
        return super().train(False)

    @property
    def shown_size(self) -> tuple[int, int] | None:
        """The (height, width) of the pixels that all see, or None where they see several."""
        sizes = {member.shown_size for member in self.members}
        return sizes.pop() if len(sizes) == 1 else None

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Teaches a batch.

        Args:
            pixel_values: (B, 3, H, W), normalised with the student's statistics.

        Returns:
            (B, num_labels) float32, in the student's label order: logarithms of the weighted mean of the members'
            probabilities, or NaN where one of them has no finite logits.
        """
        return self.together(self.each(pixel_values))

    def each(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """What each member says of a batch: its logits, (B, num_labels) float32."""
        return [member(pixel_values) for member in self.members]

    def together(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the members say together, of what each has said; see `forward`. Notes who has said nothing."""
        answered = torch.stack([has_answer(part) for part in logits])
        self._unanswered += (~answered).sum(dim=1)
        parts = [part.log_softmax(dim=-1) + weight for part, weight in zip(logits, self.log_weights, strict=True)]
        # Sorted, as a sum of floats depends on the order of its parts.
        mean = torch.stack(parts).sort(dim=0).values.logsumexp(dim=0)
        return torch.where(answered.all(dim=0).unsqueeze(1), mean, torch.nan)

    def run_as(self, executions: Sequence[Execution]) -> None:
        """Runs the members from now on each as its `Execution` says; see `Teacher.run_as`."""
        for member, execution in zip(self.members, executions, strict=True):
            member.run_as(execution)
        self.description = replace(self.description, members=tuple(member.description for member in self.members))

    def without_answer(self) -> list[str]:
        """The names of the members that have given some view no finite answer so far. Waits for the device."""
        names = [member.name_or_path for member in self.members]
        return [name for name, count in zip(names, self._unanswered.tolist(), strict=True) if count]


@dataclass(frozen=True)
class EnsembleDescription:
    """What is known of several teachers from their small files. Made by `hf_deit.models.teacher.describe_teacher`.

    Attributes:
        members: of each what is known of it; all have the student's labels in its order.
        weights: of each, from `normalized_weights`.
    """

    members: tuple[TeacherDescription, ...]
    weights: tuple[float, ...]

    revision = None

    @property
    def is_zero_shot(self) -> bool:
        """Whether one of them knows classes by texts about them."""
        return any(member.is_zero_shot for member in self.members)

    @property
    def name_or_path(self) -> str:
        """The names of all, in words."""
        return " + ".join(member.name_or_path for member in self.members)

    @property
    def short_names(self) -> list[str]:
        """What to call each: its id, or the last part of its folder's name where that tells it from the others."""
        names = [
            one.name_or_path if one.revision else os.path.basename(os.path.abspath(one.name_or_path))
            for one in self.members
        ]
        whole = [member.name_or_path for member in self.members]
        return names if len(set(names)) == len(names) else whole

    @property
    def id2label(self) -> Mapping[int, str]:
        return self.members[0].id2label

    @property
    def dtype(self) -> torch.dtype:
        return self.members[0].dtype

    @property
    def prompts(self) -> Any:
        """The texts of the first zero-shot model among them, or None."""
        return next((member.prompts for member in self.members if member.prompts is not None), None)

    @property
    def is_undecided(self) -> bool:
        """Whether it is to be found out how they run fastest."""
        return any(member.is_undecided for member in self.members)

    def decided_by(self, known: Mapping[str, Any]) -> "EnsembleDescription":
        """See `TeacherDescription.decided_by`; of a member that is not known, as it was loaded."""
        said = {one["revision"]: one for one in known.get("members", ())}
        members = tuple(member.decided_by(said.get(member.identity()["revision"], {})) for member in self.members)
        return replace(self, members=members) if self.is_undecided else self

    def load(self, device: torch.device | str | None = None) -> TeacherEnsemble:
        """Loads the weights of all.

        Args:
            device: to put them on; the CPU by default.

        Raises:
            InputError: see `hf_deit.models.teacher.load_teacher`.
        """
        return TeacherEnsemble([member.load() for member in self.members], self).to(device or "cpu")

    def identity(self) -> dict[str, Any]:
        """What their answers depend on, as an object of JSON; the same in whatever order they are given.

        `members` has what `TeacherDescription.identity` says of each but for its name, in the order of their
        revisions, and `names` and `weights` theirs in the same order. `revision` is a digest of the members'.

        Raises:
            InputError: one is neither on the Hub nor a folder with weights.
        """
        known = sorted(
            ((member.identity(), weight) for member, weight in zip(self.members, self.weights, strict=True)),
            key=lambda pair: (pair[0]["revision"], pair[0]["name"]),
        )
        members = [{name: one[name] for name in one if name not in ("name", "labels")} for one, _ in known]
        names = [identity["name"] for identity, _ in known]
        revisions = "\n".join(member["revision"] for member in members)
        return {
            "name": " + ".join(names),
            "revision": f"sha256:{hashlib.sha256(revisions.encode()).hexdigest()}",
            "labels": in_order(self.id2label),
            "dtype": members[0]["dtype"],
            "names": names,
            "members": members,
            "weights": [weight for _, weight in known],
        }


def normalized_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The weights of several teachers, with a sum of 1.

    Args:
        weights: positive numbers; by default all alike.
        count: of the teachers.

    Raises:
        InputError: there are more or fewer of them; or one is not positive and finite, or nothing beside the others.
    """
    try:
        weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
    except (TypeError, ValueError) as error:
        raise InputError(f"weights of teachers must be numbers, one for each, got {brief(weights)}") from error
    if len(weights) != count:
        given = shortlist(f"{weight:g}" for weight in weights)
        raise InputError(
            f"there are {count} teachers, but {len(weights)} weights ({given}): give each teacher one with "
            "--teacher_weights (weights of load_teacher), in their order"
        )
    if wrong := [f"{weight:g}" for weight in weights if not (math.isfinite(weight) and weight > 0)]:
        raise InputError(
            f"weights of teachers must be positive and finite, got {shortlist(wrong)}: leave out a teacher that shall "
            "not count"
        )
    parts = [weight / max(weights) for weight in weights]
    if min(parts) < _LEAST_PART:
        raise InputError(f"a weight of {min(weights):g} is nothing beside {max(weights):g}: leave that teacher out")
    total = math.fsum(parts)
    return tuple(float(f"{part / total:.12g}") for part in parts)  # rounded: 0.2 and 0.1 are 2 and 1
