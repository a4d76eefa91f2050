"""The model card of a run, written from what the run knows."""

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel, TrainerState

from .environment import describe_environment

BEGIN = "<!-- Written by hf_deit, and written anew when the run is published again. What stands outside is kept. -->"
END = "<!-- End of what hf_deit has written. -->"
_METADATA = re.compile(r"\A\ufeff?\s*---\r?\n(.*?)\r?\n---\s*(?:\r?\n|\Z)", re.DOTALL)
_HEADS = {"": "fused heads", "class_": "class head", "distillation_": "distillation head"}
# In the names of checkpoints: trained on more than the images of ImageNet-1k.
_MORE_DATA = re.compile(
    r"in2[12]k|imagenet-?2[12]k|laion|clip|siglip|jft|ig1b|swsl|webli|lvd|dfn|datacomp|merged2b", re.I
)
_MOST_LABELS_LISTED = 20


@dataclass(frozen=True)
class Source:
    """A model or a data set that a run starts from.

    Attributes:
        name: its Hub id, or what it is in words.
        commit: of the Hub, or None.
        on_hub: whether the name is a Hub id.
    """

    name: str
    commit: str | None = None
    on_hub: bool = False

    def __str__(self) -> str:
        if not self.on_hub:
            return self.name
        commit = f" at commit `{self.commit[:12]}`" if self.commit else ""
        return f"[{self.name}](https://huggingface.co/{self.name}){commit}"


@dataclass
class RunSources:
    """What a run is made from, as its card names it.

    Attributes:
        student: the checkpoint that training starts from, or the name of the architecture.
        teacher: the teacher, or None.
        teacher_datasets: on which the teacher's own card says that it was trained; None if it does not say.
        dataset, dataset_config, train_split, validation_split: the images.
        recipe: the resolved arguments, without folders of this machine.
        start: of the run, as `time.perf_counter()`.
    """

    student: Source
    teacher: Source | None
    teacher_datasets: list[str] | None = None
    dataset: Source = Source("images that were not named")
    dataset_config: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    recipe: dict[str, Any] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, model: PreTrainedModel, teacher: Any | None) -> "RunSources":
        """What a model and a teacher from `load_teacher` tell of themselves."""
        source = None
        if teacher is not None:
            on_hub = teacher.revision is not None
            name = teacher.name_or_path if on_hub else "a teacher from a local folder"
            source = Source(name, teacher.revision, on_hub)
        return cls(student=Source(model.config.model_type), teacher=source)


@dataclass
class RunFacts:
    """What a run knows of itself when its model is published. Kept as JSON beside the weights.

    Attributes:
        architecture: class of the model.
        model_type: of its configuration.
        parameters: how many.
        image_size: input size in pixels.
        needs_code: whether the repository brings the model's code, as for CaiT.
        is_distilled: whether there was a teacher.
        labels: names of the labels by index.
        student: the checkpoint that training started from, or the name of the architecture.
        teacher: the teacher, or None.
        teacher_top1, teacher_images: its accuracy in [0, 1] and the number of validation images it was measured on.
        teacher_datasets: on which its own card says that it was trained; None if it does not say.
        dataset, dataset_config, train_split, validation_split: the images.
        num_train, num_validation: how many images they are.
        metrics: of the last evaluation, as transformers' Trainer logs them.
        metrics_step: optimizer steps done by then.
        weights: which are published, "raw" or "ema".
        step, num_steps: optimizer steps done, and of the whole run.
        num_epochs: done.
        batch_size: of all devices and accumulation steps.
        images_per_second: in training, over all devices.
        minutes: of the whole run.
        environment: see `hf_deit.environment`.
        recipe: the resolved arguments.
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
    teacher_top1: float | None = None
    teacher_images: int | None = None
    teacher_datasets: list[str] | None = None
    dataset_config: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    num_train: int | None = None
    num_validation: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_step: int | None = None
    images_per_second: float | None = None
    minutes: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        args: Any,
        state: TrainerState,
        sources: RunSources,
        *,
        image_size: int,
        num_train: int | None,
        num_validation: int | None,
        teacher_report: Mapping[str, float],
        images_per_second: float,
    ) -> "RunFacts":
        """The facts of a run as it stands.

        Args:
            model: the student, unwrapped.
            args: `DistillationTrainingArguments`.
            state: of the Trainer.
            sources: what the run is made from.
            image_size: input size in pixels.
            num_train, num_validation: numbers of images; None for a stream, or for none.
            teacher_report: of `check_teacher`, with `teacher_images` beside `teacher_top1`.
            images_per_second: so far.
        """
        config = model.config
        evaluated = next((line for line in reversed(state.log_history) if "eval_loss" in line), {})
        named = {item.name: getattr(sources, item.name) for item in fields(sources)}
        del named["start"]
        return cls(
            **named,
            architecture=type(model).__name__,
            model_type=config.model_type,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            image_size=image_size,
            needs_code=bool(getattr(model, "_auto_class", None) or getattr(config, "auto_map", None)),
            is_distilled=args.distillation_type != "none",
            labels=[config.id2label[index] for index in sorted(config.id2label)],
            weights=args.publish_weights,
            step=state.global_step,
            num_steps=state.max_steps,
            num_epochs=state.epoch or 0.0,
            batch_size=args.total_train_batch_size,
            environment=describe_environment(num_processes=args.world_size),
            teacher_top1=teacher_report.get("teacher_top1"),
            teacher_images=teacher_report.get("teacher_images"),
            num_train=num_train,
            num_validation=num_validation,
            metrics={name: value for name, value in evaluated.items() if name.startswith("eval_")},
            metrics_step=evaluated.get("step"),
            images_per_second=images_per_second or None,
            minutes=(time.perf_counter() - sources.start) / 60,
        )

    @property
    def is_finished(self) -> bool:
        return self.step >= self.num_steps

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunFacts":
        """Reads what `to_dict` gave.

        Raises:
            TypeError: fields are missing or unknown.
        """
        sources = {name: Source(**values[name]) for name in ("student", "teacher", "dataset") if values.get(name)}
        return cls(**{**values, **sources})

    def results(self) -> list[tuple[str, str, float]]:
        """Accuracies of the published weights: head, "top-1" or "top-5", and the value in [0, 1]."""
        if self.metrics_step != self.step:
            return []
        average = "ema_" if self.weights == "ema" else ""
        single = f"eval_{average}class_top1" not in self.metrics
        rows = []
        for head, name in _HEADS.items():
            for k in (1, 5):
                value = self.metrics.get(f"eval_{average}{head}top{k}")
                if value is not None:
                    rows.append(("the model" if single else name, f"top-{k}", value))
        return rows

    def external_data(self) -> str | None:
        """A sentence on what the teacher has seen beyond the student's images; None if there is nothing to say."""
        if self.teacher is None or not self.teacher.on_hub:
            return None
        others = [name for name in self.teacher_datasets or () if name != self.dataset.name]
        if others:
            return (
                f"**External data.** The teacher's card says that it was trained on {', '.join(others)}: through the "
                "teacher's labels this model has learnt from these images, too."
            )
        if _MORE_DATA.search(self.teacher.name):
            return (
                "**External data.** The teacher's name says that it was trained on more images than these: through "
                "its labels this model has learnt from them, too."
            )
        if self.teacher_datasets is None:
            return (
                "**External data.** The teacher's card does not say on which images it was trained: through its "
                "labels this model may have learnt from others than those named here."
            )
        return None


def make_card(facts: RunFacts, repo_id: str) -> str:
    """The whole card of a run's model.

    Args:
        facts: of the run.
        repo_id: where it is published.
    """
    return f"---\n{_metadata(facts, repo_id).to_yaml()}\n---\n\n{BEGIN}\n\n{_body(facts, repo_id)}\n\n{END}\n"


def update_card(existing: str | None, facts: RunFacts, repo_id: str) -> str:
    """Writes the card into an existing one: what people have added to the text and to the metadata stays.

    Args:
        existing: a card's text, or None. The part between the two marks is replaced; a card without marks stays as it
            is, with the new part at its end.
        facts, repo_id: see `make_card`.
    """
    if not (existing or "").strip():
        return make_card(facts, repo_id)
    metadata = _metadata(facts, repo_id).to_dict()
    match = _METADATA.match(existing)
    text = existing[match.end() :] if match else existing
    try:
        old = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        old = {}
    old = old if isinstance(old, dict) else {}
    merged = {**old, **metadata}
    merged["tags"] = list(dict.fromkeys([*metadata["tags"], *_as_list(old.get("tags"))]))
    block = f"{BEGIN}\n\n{_body(facts, repo_id)}\n\n{END}"
    start, end = text.find(BEGIN), text.rfind(END)
    has_marks = 0 <= start < end
    text = text[:start] + block + text[end + len(END) :] if has_marks else f"{text.rstrip()}\n\n{block}\n"
    return f"---\n{yaml.safe_dump(merged, sort_keys=False, allow_unicode=True).strip()}\n---\n\n{text.lstrip()}"


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def hand_written(text: str | None) -> str:
    """What people have added to a card's text, outside the part that is written for them."""
    text = _METADATA.sub("", text or "", count=1)
    start, end = text.find(BEGIN), text.rfind(END)
    return (text[:start] + text[end + len(END) :] if 0 <= start < end else text).strip()


def card_faults(text: str) -> list[str]:
    """What a card lacks that people need: a sentence each."""
    match = _METADATA.match(text)
    try:
        metadata = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        return [f"its metadata is no YAML ({str(error).splitlines()[0]})"]
    if not isinstance(metadata, dict):
        return ["it has no metadata between --- lines at its top"]
    faults = [
        f"its metadata has no {key}" for key in ("library_name", "pipeline_tag", "tags") if not metadata.get(key)
    ]
    if len(text[match.end() :].strip()) < 100:
        faults.append("it has next to no text")
    return faults


def _metadata(facts: RunFacts, repo_id: str) -> ModelCardData:
    dataset_type = (
        facts.dataset.name if facts.dataset.on_hub else re.sub(r"[^\w.-]+", "-", facts.dataset.name).strip("-")
    )
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset_type,
            dataset_name=facts.dataset.name,
            dataset_config=facts.dataset_config,
            dataset_split=facts.validation_split,
            dataset_revision=facts.dataset.commit,
            dataset_args={"num_images": facts.num_validation},
            metric_type="accuracy",
            metric_name=f"{k} accuracy, {head}",
            metric_value=round(value, 4),
            verified=False,
        )
        for head, k, value in facts.results()
    ]
    models = [source.name for source in (facts.student, facts.teacher) if source is not None and source.on_hub]
    family = {"vit": "deit"}.get(facts.model_type, facts.model_type)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=models or None,
        datasets=[facts.dataset.name] if facts.dataset.on_hub else None,
        metrics=["accuracy"] if results else None,
        tags=["image-classification", "vision", family, "hf_deit", *(["distillation"] if facts.is_distilled else [])],
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _body(facts: RunFacts, repo_id: str) -> str:
    sections = [f"# {repo_id.split('/')[-1]}", _introduction(facts)]
    if not facts.is_finished:
        sections.append(f"**Training goes on**: these are the weights after step {facts.step} of {facts.num_steps}.")
    sections += ["## Results", _results(facts), "## Use", _use(facts, repo_id)]
    if len(facts.labels) <= _MOST_LABELS_LISTED:
        sections.append(f"Its labels: {', '.join(facts.labels)}.")
    if facts.teacher is not None:
        sections += ["## Teacher", _teacher(facts)]
    sections += ["## Training", _training(facts)]
    return "\n\n".join(sections)


def _introduction(facts: RunFacts) -> str:
    size = f"{facts.image_size} x {facts.image_size} pixels"
    how = "fine-tuned from" if facts.student.on_hub else "trained as"
    teacher = f", distilled from {facts.teacher}" if facts.teacher is not None else ""
    configuration = f" (configuration {facts.dataset_config})" if facts.dataset_config else ""
    return (
        f"An image classifier with {len(facts.labels):,} labels: `{facts.architecture}`, "
        f"{facts.parameters / 1e6:.3g} M parameters, {size}, {how} {facts.student}{teacher}. "
        f"Trained on {facts.dataset}{configuration}."
    )


def _results(facts: RunFacts) -> str:
    rows = facts.results()
    if not rows:
        return "These weights have not been evaluated."
    names = list(dict.fromkeys(name for name, _, _ in rows))
    columns = list(dict.fromkeys(k for _, k, _ in rows))
    values = {(name, k): f"{value:.4f}" for name, k, value in rows}
    if facts.teacher_top1 is not None and facts.teacher_images == facts.num_validation:
        names.append("the teacher")
        values["the teacher", "top-1"] = f"{facts.teacher_top1:.4f}"
    table = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    table += [f"| {name} | {' | '.join(values.get((name, k), '') for k in columns)} |" for name in names]
    which = {"ema": "the moving average of the weights, which is published here", "raw": "the weights as trained"}
    images = f"{facts.num_validation:,} images of {facts.dataset} (split `{facts.validation_split}`)"
    return f"Accuracy on {images}, measured with {which[facts.weights]}.\n\n" + "\n".join(table)


def _use(facts: RunFacts, repo_id: str) -> str:
    code = ", trust_remote_code=True" if facts.needs_code else ""
    note = (
        " The model's code comes with the repository, as transformers has no such model." if facts.needs_code else ""
    )
    return (
        f"With transformers alone.{note}\n\n```python\nfrom transformers import pipeline\n\n"
        f'classify = pipeline("image-classification", model="{repo_id}"{code})\nprint(classify("image.png"))\n```'
    )


def _teacher(facts: RunFacts) -> str:
    name = str(facts.teacher)
    lines = [f"{name[0].upper()}{name[1:]}."]
    if facts.teacher_top1 is not None:
        lines[0] += (
            f" Its top-1 accuracy on {facts.teacher_images:,} of the validation images is {facts.teacher_top1:.4f}."
        )
    external = facts.external_data()
    return "\n\n".join(lines + ([external] if external else []))


def _training(facts: RunFacts) -> str:
    environment = facts.environment
    versions = ", ".join(f"{name} {number}" for name, number in environment.get("libraries", {}).items())
    rows = [
        ("steps", f"{facts.step:,} of {facts.batch_size} images, {facts.num_epochs:.4g} epochs"),
        ("images", f"{facts.num_train:,}, split `{facts.train_split}`" if facts.num_train else "a stream"),
        ("weights", "their moving average" if facts.weights == "ema" else "as trained"),
        ("device", f"{environment.get('num_processes', 1)} x {environment.get('device')}"),
        ("time", None if facts.minutes is None else f"{facts.minutes:.1f} minutes"),
        ("speed", None if not facts.images_per_second else f"{facts.images_per_second:.0f} images/s"),
        ("versions", versions),
        ("commit of hf_deit", environment.get("hf_deit_commit")),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows if value)]
    recipe = yaml.safe_dump(facts.recipe, sort_keys=False, allow_unicode=True).strip() if facts.recipe else ""
    parts = ["\n".join(table), "![Training curves](training_curves.png)"]
    if recipe:
        parts.append(f"The arguments, as in `recipe.yaml`:\n\n```yaml\n{recipe}\n```")
    return "\n\n".join(parts)
