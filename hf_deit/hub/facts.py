"""What a run knows of itself, and what it was made from: the facts that cards and records state."""

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from transformers import PreTrainedModel, TrainerState

from ..errors import with_bounds
from ..models.class_names import in_order
from ..models.heads import CLASS, FUSED, MEASURED, PLAIN, words_of_answer
from ..models.pretrained import own_code_of
from .environment import describe_environment
from .markdown import code_span, escape_markdown

# In the names of checkpoints: trained on more than the images of ImageNet-1k.
_MORE_DATA = re.compile(
    r"in2[12]k|imagenet-?2[12]k|laion|clip|siglip|jft|ig1b|swsl|webli|lvd|dfn|datacomp|merged2b", re.I
)


@dataclass(frozen=True)
class Source:
    """A model or a data set that a run starts from.

    Attributes:
        name: its Hub id, or what it is in words.
        commit: on the Hub, or None where there is none or it is not known.
        on_hub: whether the name is a Hub id.
        is_dataset: whether it is a data set, which has another address there.
    """

    name: str
    commit: str | None = None
    on_hub: bool = False
    is_dataset: bool = False

    def __str__(self) -> str:
        """As Markdown, with its address."""
        if not self.on_hub:
            return escape_markdown(self.name, keep_code=True)
        commit = f" at commit {code_span(self.commit[:12])}" if self.commit else ""
        parent = "datasets/" if self.is_dataset else ""
        return f"[{escape_markdown(self.name)}](https://huggingface.co/{parent}{quote(self.name)}){commit}"

    @classmethod
    def of_teacher(cls, teacher: Any) -> "Source":
        """Of a teacher from `load_teacher`, which has a revision if it comes from the Hub; or of several in words."""
        if (members := getattr(teacher, "members", None)) is not None:
            return several(len(members))
        if teacher.revision is None:
            return LOCAL_TEACHER
        return cls(teacher.name_or_path, teacher.revision, on_hub=True)


def several(count: int) -> Source:
    """So many teachers together, whose `Member`s say where each comes from."""
    return Source(f"the mean of {count} teachers")


LOCAL_CHECKPOINT = Source("a checkpoint from a local folder")
LOCAL_TEACHER = Source("a teacher from a local folder")
LOCAL_DATA_SET = Source("a local data set")
OWN_IMAGES = Source("images of one's own")
SKLEARN_DIGITS = Source("scikit-learn's digits")
UNNAMED_IMAGES = Source("images that were not named")
CONFIDENCE = 0.95  # of intervals
TEACHERS_LABELS = Source("labels of the teacher alone")  # in place of a data set with labels


@dataclass(frozen=True)
class Member:
    """One of several teachers of a run.

    Attributes:
        source: where it comes from.
        weight: of its probabilities in the mean; all weights have a sum of 1.
        datasets, license, size, top1: what `RunFacts` has as teacher_datasets, teacher_license, teacher_size and
            teacher_top1 of a single one.
    """

    source: Source
    weight: float
    datasets: list[str] | None = None
    license: str | None = None
    size: list[int] | None = None
    top1: float | None = None

    @classmethod
    def all_of(cls, teacher: Any) -> "list[Member]":
        """Those of a teacher from `load_teacher` or `describe_teacher`; none if it is one."""
        members = getattr(teacher, "members", None)
        if members is None:
            return []
        return [cls(Source.of_teacher(one), weight) for one, weight in zip(members, teacher.weights, strict=True)]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Member":
        """Reads what `RunFacts.to_dict` gave of it.

        Raises:
            TypeError: fields are missing or unknown.
        """
        return cls(**{**values, "source": Source(**values["source"])})


@dataclass
class RunSources:
    """What a run is made from, as its card names it.

    Attributes:
        student: the checkpoint that training starts from, or the name of the architecture.
        teacher: the teacher, or None.
        teacher_members: of several teachers each.
        teacher_datasets: the data sets on which the teacher was trained, by its own card; None if that does not say.
        teacher_license: its licence, by its own card; "" if that states none; None if it was not looked at.
        teacher_texts: the texts by which a zero-shot teacher knows the first class; None for a classifier.
        teacher_size: [height, width] at which the teacher is shown the views; None if it is not known.
        dataset, dataset_config, train_split, validation_split, test_split: the images.
        unlabeled: the images without labels beside them, or None.
        teacher_labels: the data set on the Hub that kept labels are taken from, or None.
        recipe: the resolved arguments, without folders of this machine.
        changes: what of them was otherwise until some step, in words.
        start: of the run, as `time.perf_counter()`.
    """

    student: Source
    teacher: Source | None
    teacher_datasets: list[str] | None = None
    teacher_license: str | None = None
    teacher_texts: list[str] | None = None
    teacher_size: list[int] | None = None
    teacher_members: list[Member] = field(default_factory=list)
    dataset: Source = UNNAMED_IMAGES
    dataset_config: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    unlabeled: Source | None = None
    teacher_labels: Source | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, model: PreTrainedModel, teacher: Any | None) -> "RunSources":
        """What a model and a teacher from `load_teacher` tell of themselves."""
        source = None if teacher is None else Source.of_teacher(teacher)
        members = Member.all_of(teacher)
        texts = texts_of(teacher)
        student = Source(model.config.model_type)
        return cls(student=student, teacher=source, teacher_members=members, teacher_texts=texts)

    def shown_by(self, teacher: Any) -> "RunSources":
        """With the sizes at which a teacher that is loaded, or each of several, is shown the views."""
        shown = [list(one.shown_size) for one in getattr(teacher, "members", ())]
        members = [
            replace(member, size=size)
            for member, size in zip(self.teacher_members or Member.all_of(teacher), shown, strict=True)
        ]
        size = None if teacher.shown_size is None else list(teacher.shown_size)
        return replace(self, teacher_size=size, teacher_members=members)


def texts_of(teacher: Any | None) -> list[str] | None:
    """The texts by which a zero-shot teacher, loaded or described, knows the first class; None for any other."""
    prompts = getattr(getattr(teacher, "description", teacher), "prompts", None)
    return None if prompts is None else list(prompts.texts[0])


@dataclass
class RunFacts:
    """What a run knows of itself when its model is published. Kept as JSON beside the weights.

    Attributes:
        architecture: class of the model.
        model_type: of its configuration.
        parameters: their number.
        image_size: input size in pixels.
        needs_code: whether the repository brings the model's code, this package's, as for CaiT.
        is_distilled: whether there was a teacher.
        fusion: how the model's heads answer together, if it has two; None in the records of earlier versions.
        labels: names of the labels by index.
        student: the checkpoint that training started from, or the name of the architecture.
        teacher: the teacher, or None.
        teacher_members: of several teachers each; empty in the records of earlier versions.
        predicted_classes: how often the teacher has said each class of some training images, as `counts`, by label; if
            its prior is corrected, `uncorrected` counts, too, and `priors`, what is taken off the logits of the
            teacher, or of each of several. None where it was not asked.
        teacher_top1, teacher_images: its accuracy in [0, 1] and the number of validation images it was measured on.
        teacher_datasets: the data sets on which the teacher was trained, by its own card; None if that does not say.
        teacher_license: its licence, by its own card; "" if that states none; None if it is not known.
        teacher_texts: the texts by which a zero-shot teacher knows the first label; None for a classifier.
        teacher_size: [height, width] at which the teacher was shown the views; None if it is not known.
        dataset, dataset_config, train_split, validation_split, test_split, unlabeled: the images.
        num_train, num_labeled: images to train on, and those of them with labels; None for a stream.
        num_validation: images that the metrics were measured on; None for none.
        num_test: images that the test metrics were measured on; None for none.
        num_skipped: images that could not be decoded, in training and evaluation.
        num_unanswered: views that the teacher's term passed over, as the teacher gave them no answer.
        classes: for each label how many of its validation images the published weights classify correctly, and how
            many it has; None if that is not known.
        teacher_labels: the data set on the Hub that kept labels were taken from, or None.
        num_replayed: views whose label by the teacher had been kept before; None without a label store.
        metrics: of an evaluation of these weights, as transformers' Trainer logs them; empty if there was none.
        test_metrics: of the one evaluation of the published weights on the test images, likewise.
        weights: which are published: "raw", as trained, or "ema", their moving average.
        step, num_steps: optimizer steps that are done, and those of the whole run.
        best_step: the step after which the weights were the best, if those are published instead of the last ones.
        is_finished: whether the training has come to its end.
        num_epochs: epochs that are done; the last one may be a fraction.
        batch_size: images of a step, over all devices and accumulation steps.
        images_per_second: in training, over all devices.
        minutes: of the whole run.
        environment: from `describe_environment`.
        recipe: the resolved arguments, without folders of this machine.
        changes: what of them was otherwise until some step, in words.
    """

    architecture: str
    model_type: str
    parameters: int
    image_size: int
    needs_code: bool
    is_distilled: bool
    labels: list[str]
    student: Source
    teacher: Source | None
    dataset: Source
    weights: str
    step: int
    num_steps: int
    num_epochs: float
    batch_size: int
    environment: dict[str, Any]
    fusion: str | None = None
    is_finished: bool = True
    best_step: int | None = None
    unlabeled: Source | None = None
    teacher_labels: Source | None = None
    num_replayed: int | None = None
    teacher_top1: float | None = None
    teacher_images: int | None = None
    predicted_classes: dict[str, Any] | None = None
    teacher_datasets: list[str] | None = None
    teacher_license: str | None = None
    teacher_texts: list[str] | None = None
    teacher_size: list[int] | None = None
    teacher_members: list[Member] = field(default_factory=list)
    dataset_config: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    num_train: int | None = None
    num_labeled: int | None = None
    test_split: str = "test"
    num_validation: int | None = None
    num_test: int | None = None
    num_skipped: int = 0
    num_unanswered: int = 0
    classes: list[list[int]] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    test_metrics: dict[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    minutes: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        args: Any,
        state: TrainerState,
        sources: RunSources,
        *,
        image_size: int,
        metrics: Mapping[str, float],
        is_finished: bool,
        best_step: int | None,
        num_train: int | None,
        num_labeled: int | None,
        num_validation: int | None,
        teacher_report: Mapping[str, float],
        images_per_second: float,
        predicted_classes: dict[str, Any] | None = None,
        num_replayed: int | None = None,
        num_skipped: int = 0,
        classes: list[list[int]] | None = None,
        test_metrics: Mapping[str, float] = MappingProxyType({}),
    ) -> "RunFacts":
        """The facts of a run as it stands.

        Args:
            model: the student, unwrapped.
            args: `DistillationTrainingArguments`.
            state: of the Trainer.
            teacher_report: may have `teacher_top1`, of several teachers `teacher_top1_of_1` too, and `teacher_images`.
            images_per_second: so far; 0 if this process has trained nothing.
            sources, image_size, metrics, is_finished, best_step, num_train, num_labeled, num_validation,
                predicted_classes, num_replayed, num_skipped, classes, test_metrics: see the attributes.
        """
        config = model.config
        named = {item.name: getattr(sources, item.name) for item in fields(sources)}
        del named["start"]
        named["teacher_members"] = [
            replace(member, top1=teacher_report.get(f"teacher_top1_of_{number}"))
            for number, member in enumerate(sources.teacher_members, 1)
        ]
        return cls(
            **named,
            architecture=type(model).__name__,
            model_type=config.model_type,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            image_size=image_size,
            needs_code=bool(own_code_of(type(config))),  # whatever the configuration says
            is_distilled=args.distillation_type != "none",
            fusion=getattr(config, "fusion", "logits"),  # which transformers' own with two heads do, too
            labels=in_order(config.id2label),
            weights=args.publish_weights,
            step=state.global_step,
            num_steps=state.max_steps,
            num_epochs=state.epoch or 0.0,
            batch_size=args.total_train_batch_size,
            environment=describe_environment(num_processes=args.world_size),
            teacher_top1=teacher_report.get("teacher_top1"),
            teacher_images=teacher_report.get("teacher_images"),
            predicted_classes=predicted_classes,
            num_train=num_train,
            num_labeled=num_labeled,
            num_validation=num_validation,
            num_skipped=num_skipped,
            # From the log, which a run that was stopped takes up again.
            num_unanswered=sum(line.get("unanswered_views", 0) for line in state.log_history),
            classes=classes,
            num_replayed=num_replayed,
            metrics={name: value for name, value in metrics.items() if name.startswith("eval_")},
            num_test=test_metrics.get("test_images"),
            test_metrics=dict(test_metrics),
            is_finished=is_finished,
            best_step=best_step,
            images_per_second=images_per_second or None,
            minutes=(time.perf_counter() - sources.start) / 60,
        )

    def taken_up(self, earlier: "RunFacts | None") -> "RunFacts":
        """These facts, with what an earlier process measured, if that ended the run and this one trained nothing."""
        if earlier is None or self.images_per_second or not earlier.is_finished or earlier.step != self.step:
            return self
        measured = ("teacher_top1", "teacher_images", "teacher_members", "predicted_classes")
        measured += ("num_replayed", "num_unanswered")
        of_the_run = ("images_per_second", "minutes", "environment")
        if not self.test_metrics and (earlier.weights, earlier.best_step) == (self.weights, self.best_step):
            measured += ("test_split", "num_test", "test_metrics")
        taken = {name: getattr(earlier, name) for name in measured + of_the_run}
        return replace(self, **taken, teacher_size=self.teacher_size or earlier.teacher_size)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunFacts":
        """Reads what `to_dict` gave.

        Raises:
            TypeError: fields are missing or unknown.
        """
        names = ("student", "teacher", "dataset", "unlabeled", "teacher_labels")
        sources = {name: Source(**values[name]) for name in names if values.get(name)}
        members = [Member.from_dict(member) for member in values.get("teacher_members", ())]
        return cls(**{**values, **sources, "teacher_members": members})

    def results(self) -> list[tuple[str, str, float]]:
        """Accuracies of the published weights: head, "top-1" or "top-5", and the value in [0, 1]."""
        if self.num_validation is None:
            return []
        return self._accuracies(self.metrics, "eval_ema_" if self.weights == "ema" else "eval_")

    def test_results(self) -> list[tuple[str, str, float]]:
        """The same on the test images; empty if they were not looked at."""
        return self._accuracies(self.test_metrics, "test_") if self.num_test else []

    def _accuracies(self, metrics: Mapping[str, float], prefix: str) -> list[tuple[str, str, float]]:
        single = f"{prefix}{CLASS.prefix}top1" not in metrics
        answer = "the model" if single else words_of_answer(self.fusion)
        rows = []
        for head in MEASURED:
            for k in (1, 5):
                value = metrics.get(f"{prefix}{head.prefix}top{k}")
                if value is not None:
                    rows.append((answer if head is FUSED else head.words, f"top-{k}", value))
        return rows

    @property
    def served_top1(self) -> float | None:
        """Accuracy in [0, 1] of what transformers alone answers with the published weights; None if not known."""
        has_two_heads = any(name.endswith(f"{CLASS.prefix}top1") for name in self.metrics)
        if self.num_validation is None or (has_two_heads and self.fusion is None):
            return None
        return served_top1(self.metrics, self.weights)

    def external_data(self) -> str | None:
        """A sentence on what the teacher has seen beyond the student's images; None if there is nothing to say."""
        if not self.teacher_members:
            return self._external_data(self.teacher, self.teacher_datasets, "The teacher")
        told = [
            self._external_data(one.source, one.datasets, escape_markdown(one.source.name))
            for one in self.teacher_members
        ]
        return "\n\n".join(dict.fromkeys(filter(None, told))) or None

    def _external_data(self, teacher: Source | None, datasets: list[str] | None, name: str) -> str | None:
        if teacher is None or not teacher.on_hub:
            return None
        others = [one for one in datasets or () if one != self.dataset.name]
        if others:
            named = ", ".join(map(escape_markdown, others))
            return (
                f"**External data.** {name}'s card says that it was trained on {named}: through the "
                "teacher's labels this model has learnt from these images, too."
            )
        if _MORE_DATA.search(teacher.name):
            return (
                f"**External data.** {name}'s name says that it was trained on more images than these: through "
                "its labels this model has learnt from them, too."
            )
        if datasets is None:
            return (
                f"**External data.** {name}'s card does not say on which images it was trained: through its "
                "labels this model may have learnt from others than those named here."
            )
        return None


def wilson_bounds(hits: int, number: int) -> tuple[float, float]:
    """The ends of the 95 % confidence interval (Wilson 1927) of a fraction; also of none and of all.

    Raises:
        ValueError: the number is not positive, or the hits are not in [0, number].
    """
    from scipy.stats import binomtest

    interval = binomtest(int(hits), int(number)).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def with_interval(accuracy: float, num_images: int) -> str:
    """An accuracy in [0, 1] of so many images with its 95 % confidence interval, as text."""
    return with_bounds(accuracy, *wilson_bounds(round(accuracy * num_images), num_images))


def served_top1(metrics: Mapping[str, float], weights: str) -> float | None:
    """Accuracy in [0, 1] of what transformers alone answers with a published model; None if it was not measured.

    Args:
        metrics: of an evaluation, as transformers' Trainer logs them.
        weights: which are published, "raw" or "ema".
    """
    average = "ema_" if weights == "ema" else ""
    names = (f"eval_{average}{head.prefix}top1" for head in (PLAIN, FUSED))
    return next((metrics[name] for name in names if name in metrics), None)
