"""The model card of a run, written from what the run knows."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ..errors import counted, one_line, rate, shortlist
from .export_record import ExportRecord
from .exports_in_card import TAGS as TAGS_OF_EXPORTS
from .exports_in_card import export_tags, exports_markdown
from .facts import (
    LOCAL_CHECKPOINT,
    LOCAL_DATA_SET,
    OWN_IMAGES,
    SKLEARN_DIGITS,
    TEACHERS_LABELS,
    UNNAMED_IMAGES,
    Member,
    RunFacts,
    Source,
    wilson_bounds,
    with_interval,
)
from .markdown import code_block, code_span, escape_markdown, table_cell
from .recipe_file import dump_recipe
from .report_in_card import CardReport, eval_results, interval_args, report_markdown, without_repeats
from .usage import WHAT_OTHER_LINES_DO, note_on_fusion, usage

BEGIN = "<!-- Written by hf_deit, and written anew when the run is published again. What stands outside is kept. -->"
END = "<!-- End of what hf_deit has written. -->"
# Around a report in a card that people have written.
REPORT_BEGIN = (
    "<!-- Written by hf-deit publish of a report, and written anew with the next. What stands outside is kept. -->"
)
REPORT_END = "<!-- End of the report. -->"
# Likewise around exports.
EXPORTS_BEGIN = (
    "<!-- Written by hf-deit publish of exports, and written anew with the next. What stands outside is kept. -->"
)
EXPORTS_END = "<!-- End of the exports. -->"
_PARTS = ((REPORT_BEGIN, REPORT_END), (EXPORTS_BEGIN, EXPORTS_END))
_METADATA = re.compile(r"\A\ufeff?\s*---\r?\n(.*?)\r?\n---\s*(?:\r?\n|\Z)", re.DOTALL)
_MOST_TEXTS_LISTED, _MOST_LABELS_COUNTED = 3, 12  # in the section on the teacher
_MOST_LABELS_LISTED = 20
_WORST_LABELS_LISTED = 10
# What machines call data sets that are not on the Hub.
_DATASET_TYPES = {
    SKLEARN_DIGITS.name: "sklearn-digits",
    OWN_IMAGES.name: "imagefolder",
    LOCAL_DATA_SET.name: "local",
    UNNAMED_IMAGES.name: "unnamed",
}
_TAGS = ("image-classification", "vision", "hf_deit")
_DISTILLED = "distillation"
# What the metadata says of a run: nothing of an earlier one's must stay.
_CLAIMS = ("model-index", "metrics", "base_model", "datasets")


def make_card(
    facts: RunFacts,
    repo_id: str,
    revision: str | None = None,
    report: CardReport | None = None,
    exports: Sequence[ExportRecord] = (),
) -> str:
    """The whole card of a run's model.

    Args:
        repo_id: the repository that it is published in.
        revision: the branch; None for the main one.
        report: of these weights, whose pictures are published with the card; None without one.
        exports: of these weights, that are published with the card.
    """
    metadata = _metadata(facts, repo_id, report, exports).to_yaml()
    body = _body(facts, repo_id, revision, report, exports)
    return f"---\n{metadata}\n---\n\n{BEGIN}\n\n{body}\n\n{END}\n"


def update_card(
    existing: str | None,
    facts: RunFacts,
    repo_id: str,
    revision: str | None = None,
    report: CardReport | None = None,
    exports: Sequence[ExportRecord] = (),
) -> str:
    """Writes the card into an existing one. What people have added to its text and its metadata stays.

    Args:
        existing: a card's text, or None. The part between `BEGIN` and `END` is replaced. A card without them stays as
            it is, and gets the new part at its end.
        facts, repo_id, revision, report, exports: see `make_card`.
    """
    if not (existing or "").strip():
        return make_card(facts, repo_id, revision, report, exports)
    metadata = _metadata(facts, repo_id, report, exports).to_dict()
    old, text = split_card(existing)
    old["tags"] = _without_tags_of_exports(old.get("tags"), text)
    text = _without_parts(text)
    if 0 <= text.find(BEGIN) < text.rfind(END):
        old = _foreign(old)
    merged = {**old, **metadata}
    merged["tags"] = list(dict.fromkeys([*metadata["tags"], *_as_list(old.get("tags"))]))
    start, end = text.find(BEGIN), text.rfind(END)
    block = f"{BEGIN}\n\n{_body(facts, repo_id, revision, report, exports)}\n\n{END}"
    body = text[:start] + block + text[end + len(END) :] if 0 <= start < end else f"{text.rstrip()}\n\n{block}\n"
    return joined_card(merged, body)


def add_report(card: str, report: CardReport | None, repo_id: str) -> str:
    """Writes a report into a card that people have made, in place of an earlier one; all else in it stays.

    Args:
        report: of the model; None takes an earlier one away.
    """
    metadata, text = split_card(card)
    results = [] if report is None else eval_results(report, _dataset_type(report.source))
    first, *others = _as_list(metadata.get("model-index")) or [{"name": repo_id.split("/")[-1], "results": []}]
    # What else people have written there is no such index, and the Hub says so.
    is_index = isinstance(first, dict) and isinstance(first.get("results"), list)
    kept = [item for item in first["results"] if not _is_of_report(item)] if is_index else []
    if is_index and (results or len(kept) < len(first["results"])):
        if results:
            (added,) = ModelCardData(model_name="any", eval_results=results).to_dict()["model-index"]
            kept += added["results"]
        index = [*([{**first, "results": kept}] if kept else []), *others]
        metadata = {**metadata, "model-index": index}
        if not index:
            del metadata["model-index"]
    elif report is None and REPORT_BEGIN not in text:
        return card
    text = _without_part(text, REPORT_BEGIN, REPORT_END)
    if report is not None:
        text = f"{text.rstrip()}\n\n{REPORT_BEGIN}\n\n{report_markdown(report)}\n\n{REPORT_END}\n"
    return joined_card(metadata, text)


def add_exports(card: str, exports: Sequence[ExportRecord], repo_id: str, revision: str | None = None) -> str:
    """Writes about exports into a card that people have made, in place of earlier ones; all else in it stays.

    Args:
        exports: of the model; none take earlier ones away.
        repo_id, revision: see `make_card`.
    """
    metadata, text = split_card(card)
    if not exports and EXPORTS_BEGIN not in text:
        return card
    tags = [*_without_tags_of_exports(metadata.get("tags"), text), *export_tags(exports)]
    text = _without_part(text, EXPORTS_BEGIN, EXPORTS_END)
    if exports:
        text = f"{text.rstrip()}\n\n{_exports(exports, repo_id, revision)}\n"
    return joined_card({**metadata, "tags": list(dict.fromkeys(tags))}, text)


def _exports(exports: Sequence[ExportRecord], repo_id: str, revision: str | None) -> str:
    return f"{EXPORTS_BEGIN}\n\n{exports_markdown(exports, repo_id, revision)}\n\n{EXPORTS_END}"


def _without_tags_of_exports(tags: Any, text: str) -> list[Any]:
    """A card's tags without those that were written for the exports of which its text speaks."""
    return [tag for tag in _as_list(tags) if EXPORTS_BEGIN not in text or tag not in TAGS_OF_EXPORTS]


def _without_parts(text: str) -> str:
    for begin, end in _PARTS:
        text = _without_part(text, begin, end)
    return text


def _without_part(text: str, begin: str, finish: str) -> str:
    start, end = text.find(begin), text.rfind(finish)
    if not 0 <= start < end:
        return text
    around = (text[:start].rstrip(), text[end + len(finish) :].strip())
    return "\n\n".join(filter(None, around)) + "\n"


def _is_of_report(result: Any) -> bool:
    try:
        metrics = result["metrics"]
        return bool(metrics) and all(str(item["args"]["measured_by"]).startswith("hf_deit ") for item in metrics)
    except (KeyError, TypeError):
        return False


def merge_cards(remote: str | None, local: str | None) -> str | None:
    """The card on the Hub, with what people have written into the local one alone. Either may be missing."""
    if not remote or not local:
        return remote or local
    (metadata, text), (others, other_text) = split_card(remote), split_card(local)
    others["tags"] = _without_tags_of_exports(others.get("tags"), other_text)
    merged = {**metadata, **{key: value for key, value in _foreign(others).items() if key != "tags"}}
    tags = [*_as_list(metadata.get("tags")), *_as_list(_foreign(others).get("tags"))]
    if tags:
        merged["tags"] = list(dict.fromkeys(tags))
    added = [part for part in hand_written(other_text).split("\n\n") if part.strip() and part.strip() not in text]
    return joined_card(merged, "\n\n".join([text.rstrip(), *added]) + "\n")


def split_card(card: str) -> tuple[dict[str, Any], str]:
    """A card's metadata and its text. Metadata that are no mapping count as none."""
    match = _METADATA.match(card)
    try:
        metadata = _parsed(match[1]) if match else {}
    except yaml.YAMLError:
        metadata = {}
    return metadata if isinstance(metadata, dict) else {}, card[match.end() :] if match else card


def _parsed(metadata: str) -> Any:
    try:
        return yaml.safe_load(metadata)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(one_line(error)) from error  # as of a date that there is not


def joined_card(metadata: dict[str, Any], text: str) -> str:
    """A card of metadata and text."""
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()}\n---\n\n{text.lstrip()}"


def _foreign(metadata: dict[str, Any]) -> dict[str, Any]:
    """What people have added to metadata that were written for a run."""
    kept = {key: value for key, value in metadata.items() if key not in _CLAIMS}
    tags = [tag for tag in _as_list(metadata.get("tags")) if tag not in (*_TAGS, _DISTILLED)]
    return {**kept, "tags": tags}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def hand_written(text: str | None) -> str:
    """What people have added to a card's text, outside the part that is written for them."""
    text = _without_parts(_METADATA.sub("", text or "", count=1))
    start, end = text.find(BEGIN), text.rfind(END)
    return (text[:start] + text[end + len(END) :] if 0 <= start < end else text).strip()


def card_faults(text: str) -> list[str]:
    """What a card lacks that its readers need: a sentence for each fault."""
    match = _METADATA.match(text)
    try:
        metadata = _parsed(match[1]) if match else None
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


def _metadata(
    facts: RunFacts, repo_id: str, report: CardReport | None, exports: Sequence[ExportRecord]
) -> ModelCardData:
    evaluated = _evaluated_on(facts)
    measured = (
        (facts.results(), facts.validation_split, facts.num_validation),
        (facts.test_results(), facts.test_split, facts.num_test),
    )
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=_dataset_type(evaluated),
            dataset_name=evaluated.name,
            dataset_config=facts.dataset_config,
            dataset_split=split,
            dataset_revision=facts.dataset.commit,
            dataset_args={"num_images": num_images},
            metric_type="accuracy",
            metric_name=f"{k} accuracy, {head}",
            metric_value=round(value, 4),
            metric_args=_interval_args(value, num_images),
            verified=False,
        )
        for rows, split, num_images in measured
        for head, k, value in rows
    ]
    if report is not None:
        measured = eval_results(report, _dataset_type(report.source))
        results = without_repeats(results, report, measured) + measured
    teachers = [member.source for member in facts.teacher_members] or [facts.teacher]
    models = [source.name for source in (facts.student, *teachers) if source is not None and source.on_hub]
    family = "deit" if facts.architecture.startswith("PlainDeiT") else facts.model_type
    named = (facts.dataset, facts.unlabeled, facts.teacher_labels)
    sets = [source.name for source in named if source is not None and source.on_hub]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=list(dict.fromkeys(models)) or None,
        datasets=sets or None,
        metrics=["accuracy"] if results else None,
        tags=[*_TAGS, family, *([_DISTILLED] if facts.is_distilled else []), *export_tags(exports)],
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def _interval_args(accuracy: float, num_images: int) -> dict[str, float] | None:
    """The interval of an accuracy; None where the record of a run says what is none."""
    if not (0 <= accuracy <= 1 and num_images > 0):
        return None
    return interval_args(*wilson_bounds(round(accuracy * num_images), num_images))


def _evaluated_on(facts: RunFacts) -> Source:
    """What the validation images are of: of the training's data set, or, if that has no labels, a folder of images."""
    return OWN_IMAGES if facts.dataset == TEACHERS_LABELS else facts.dataset


def _dataset_type(source: Source) -> str:
    """What machines call a data set: its Hub id, or a word of ASCII letters, digits and hyphens."""
    if source.on_hub:
        return source.name
    words = re.sub(r"[^a-z0-9]+", "-", source.name.lower().replace("'s ", " ")).strip("-")
    return _DATASET_TYPES.get(source.name, words or "unnamed")


def _body(
    facts: RunFacts, repo_id: str, revision: str | None, report: CardReport | None, exports: Sequence[ExportRecord]
) -> str:
    sections = [f"# {escape_markdown(repo_id.split('/')[-1])}", _introduction(facts)]
    if not facts.is_finished:
        sections.append(f"**Training goes on**: these are the weights after step {facts.step} of {facts.num_steps}.")
    sections += ["## Results", _results(facts)]
    if report is not None:
        sections.append(report_markdown(report))
    sections += ["## Use", _use(facts, repo_id, revision)]
    if len(facts.labels) <= _MOST_LABELS_LISTED and not _has_classes(facts):
        sections.append(f"Its labels: {', '.join(map(escape_markdown, facts.labels))}.")
    if exports:
        sections.append(_exports(exports, repo_id, revision))
    if facts.teacher is not None:
        sections += ["## Teacher", _teacher(facts)]
    sections += ["## Training", _training(facts)]
    return "\n\n".join(sections)


def _introduction(facts: RunFacts) -> str:
    size = f"{facts.image_size} x {facts.image_size} pixels"
    teacher = f", distilled from {facts.teacher}" if facts.teacher is not None else ""
    number = facts.parameters
    parameters = f"{number / 1e6:.3g} M parameters" if number >= 1e6 else counted(number, "parameter")
    is_checkpoint = facts.student.on_hub or facts.student == LOCAL_CHECKPOINT
    how = "fine-tuned from" if is_checkpoint else "trained from scratch as"
    if not is_checkpoint and (changes := facts.recipe.get("student_overrides")):
        settings = shortlist([f"{name} {value}" for name, value in changes.items()], 8)
        teacher = f" with {escape_markdown(settings)}{teacher}"
    return (
        f"An image classifier with {counted(len(facts.labels), 'label')}: {code_span(facts.architecture)}, "
        f"{parameters}, {size}, {how} {facts.student}{teacher}. "
        f"Trained on {_trained_on(facts)}."
    )


def _trained_on(facts: RunFacts) -> str:
    if facts.dataset == TEACHERS_LABELS:
        return f"{facts.unlabeled or 'images'} without labels: it has learnt what the teacher says of them"
    configuration = f" (configuration {escape_markdown(facts.dataset_config)})" if facts.dataset_config else ""
    if facts.unlabeled is not None:
        more = "more images of one's own" if facts.unlabeled == facts.dataset == OWN_IMAGES else facts.unlabeled
        return f"{facts.dataset}{configuration} and, without labels, {more}"
    few = None not in (facts.num_labeled, facts.num_train) and facts.num_labeled < facts.num_train
    kept = f", of which {facts.num_labeled:,} of {facts.num_train:,} kept their labels" if few else ""
    return f"{facts.dataset}{configuration}{kept}"


def _results(facts: RunFacts) -> str:
    rows, tested = facts.results(), facts.test_results()
    if not rows and not tested:
        has_none = facts.is_finished and facts.dataset == TEACHERS_LABELS
        why = ": there were no labelled images to measure an accuracy on" if has_none else ""
        return f"These weights have not been evaluated{why}."
    which = {"ema": "the moving average of the weights, which is published here", "raw": "the weights as trained"}
    parts = []
    if rows:
        table = [(name, k, f"{value:.4f}") for name, k, value in rows]
        if facts.teacher_top1 is not None and facts.teacher_images == facts.num_validation:
            who = "the teachers together" if facts.teacher_members else "the teacher"
            table.append((who, "top-1", f"{facts.teacher_top1:.4f}"))
        images = _images_in_words(facts, facts.num_validation, facts.validation_split, "for validation")
        parts += [f"Accuracy on {images}, measured with {which[facts.weights]}.", _table_of_accuracies(table)]
    if tested:
        images = _images_in_words(facts, facts.num_test, facts.test_split, "as a test")
        parts.append(
            f"Accuracy on {images}, which were looked at once, when the training had ended, measured with "
            f"{which[facts.weights]}; with 95 % confidence intervals (Wilson)."
        )
        parts.append(_table_of_accuracies((name, k, with_interval(v, facts.num_test)) for name, k, v in tested))
    return "\n\n".join([*parts, *([_classes(facts)] if _has_classes(facts) else [])])


def _table_of_accuracies(rows: Iterable[tuple[str, str, str]]) -> str:
    """A table of what has which accuracy, of name, "top-1" or "top-5", and the value as text."""
    values = {(name, k): value for name, k, value in rows}
    names, columns = (list(dict.fromkeys(part)) for part in zip(*values, strict=True))
    table = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    table += [f"| {name} | {' | '.join(values.get((name, k), '') for k in columns)} |" for name in names]
    return "\n".join(table)


def _images_in_words(facts: RunFacts, count: int, split: str, purpose: str) -> str:
    """So many images of a split, or of those that were held out or kept apart for a purpose."""
    source, number = _evaluated_on(facts), counted(count, "image")
    images = (
        f"{number}{escape_markdown(source.name).removeprefix('images')}"
        if _are_images(source)
        else f"{number} of {source}"
    )
    held_out_of = split.removeprefix("held out of ")
    if held_out_of != split:
        part = (
            f"held out of its split {code_span(held_out_of)}"
            if _has_splits(source)
            else "held out of the training images"
        )
        return f"{images} ({part})"
    return f"{images} (split {code_span(split)})" if _has_splits(source) else f"{images} (kept apart {purpose})"


def _are_images(source: Source) -> bool:
    """Whether a source is called "images …", which need not be called images of images."""
    return not source.on_hub and source.name.startswith("images")


def _has_splits(source: Source) -> bool:
    return source.on_hub or source == LOCAL_DATA_SET


def _has_classes(facts: RunFacts) -> bool:
    return bool(facts.results()) and facts.classes is not None and len(facts.classes) == len(facts.labels)


def _classes(facts: RunFacts) -> str:
    """The accuracy of each label, or, of many, of the worst ones."""
    rows = [(name, hits, images) for name, (hits, images) in zip(facts.labels, facts.classes, strict=True)]
    head = facts.results()[0][0]
    which = f"Label by label, top-1 of {head if head.startswith('the ') else f'the {head}'}"
    if len(rows) > _MOST_LABELS_LISTED:
        present = [row for row in rows if row[2]]
        which += f"; of {len(rows):,} labels the {min(_WORST_LABELS_LISTED, len(present))} worst"
        absent = len(rows) - len(present)
        which += f" ({counted(absent, 'label')} without an image to measure on)" if absent else ""
        rows = sorted(present, key=lambda row: row[1] / row[2])[:_WORST_LABELS_LISTED]
    lines = [f"| {table_cell(name)} | {f'{hits / n:.4f}' if n else ''} | {n:,} |" for name, hits, n in rows]
    return f"{which}:\n\n" + "\n".join(["| label | top-1 | images |", "|---|---|---|", *lines])


def _use(facts: RunFacts, repo_id: str, revision: str | None) -> str:
    sentences = ["With transformers alone."]
    if facts.needs_code:
        sentences.append("The model's code comes with the repository, as transformers has no such model.")
    if facts.served_top1 is not None:
        which = "validation " if facts.test_results() else ""
        sentences.append(
            f"These lines answer with a top-1 accuracy of {facts.served_top1:.4f} on the {which}images above."
        )
    if note := note_on_fusion(facts.architecture, facts.fusion, repo_id):
        sentences.append(note)
    lines = usage(repo_id, revision=revision, needs_code=facts.needs_code)
    return f"{' '.join(sentences)}\n\n{code_block(lines, 'python')}\n\n{WHAT_OTHER_LINES_DO}"


def _teacher(facts: RunFacts) -> str:
    name = str(facts.teacher)
    lines = [f"{name[0].upper()}{name[1:]}."]
    if facts.teacher_top1 is not None:
        lines[0] += (
            f" Its top-1 accuracy on {facts.teacher_images:,} of the validation images is {facts.teacher_top1:.4f}."
        )
    if facts.num_replayed:
        where = "" if facts.teacher_labels is None else f", in the data set {facts.teacher_labels}"
        lines[0] += f" What it says of {counted(facts.num_replayed, 'training view')} had been kept before{where}."
    if facts.teacher_size is not None:
        resized = "" if facts.teacher_size == [facts.image_size] * 2 else ", resized from the student's"
        shown = "They are shown" if facts.teacher_members else "It is shown"
        lines[0] += f" {shown} the training views at {' x '.join(map(str, facts.teacher_size))} pixels{resized}."
    if facts.teacher_members:
        lines.append(_members(facts))
    if facts.teacher_texts:
        texts = ", ".join(map(code_span, facts.teacher_texts[:_MOST_TEXTS_LISTED]))
        rest = len(facts.teacher_texts) - _MOST_TEXTS_LISTED
        texts += f" and {rest} more" if rest > 0 else ""
        who, told = "It is a zero-shot model, which knows", "it was"
        if facts.teacher_members:
            who, told = "Those of them that are zero-shot models know", "the first of these was"
        lines.append(f'{who} labels by their names: of "{escape_markdown(facts.labels[0])}" {told} told {texts}.')
    if facts.predicted_classes is not None:
        lines.append(_predicted(facts))
    external, terms = facts.external_data(), _license_of_teacher(facts)
    return "\n\n".join(filter(None, [*lines, external, terms]))


def _predicted(facts: RunFacts) -> str:
    """How often the teacher says each label of the training images, and what was done about it."""
    counts, uncorrected, priors = (facts.predicted_classes.get(name) for name in ("counts", "uncorrected", "priors"))
    number = max(sum(counts), 1)

    def shares(values: Sequence[int]) -> str:
        order = sorted(range(len(values)), key=lambda index: -values[index])
        named = [f"{escape_markdown(facts.labels[index])} {values[index] / number:.1%}" for index in order]
        return shortlist(named, _MOST_LABELS_COUNTED)

    who = "they said" if facts.teacher_members else "it said"
    said = f"Before the training, {who} of {counted(sum(counts), 'training image')}: {shares(counts)}."
    never = counts.count(0)
    said += f" {counted(never, 'label')} of {len(counts):,} never." if never else ""
    if priors:
        whose = "the prior of each zero-shot one" if facts.teacher_members else "its prior"
        said += (
            f" That is with {whose} corrected: the log of its mean probabilities on training images, of which no "
            "label was looked at, is taken off its logits."
        )
    return said if uncorrected is None else f"{said} Without that it says {shares(uncorrected)}."


def _license_of_teacher(facts: RunFacts) -> str:
    """A sentence on the teacher's licence; of one from a folder only if that states one."""
    if facts.teacher_license:
        return (
            f"**Licence of the teacher**, by its own card: {code_span(facts.teacher_license)}. Whether it also binds "
            "those who use this model, which has learnt from its answers, is for them to read there."
        )
    if facts.teacher_license is not None and facts.teacher.on_hub:
        return "**Licence of the teacher**: its card states none."
    return ""


def _members(facts: RunFacts) -> str:
    """A table of several teachers: where each comes from, its weight in the mean, and what it gets right by itself."""
    columns = {
        "teacher": [str(member.source) for member in facts.teacher_members],
        "weight": [f"{member.weight:.3g}" for member in facts.teacher_members],
        "pixels": [" x ".join(map(str, member.size or ())) for member in facts.teacher_members],
        "top-1 by itself": ["" if one.top1 is None else f"{one.top1:.4f}" for one in facts.teacher_members],
        "licence, by its card": [_stated_license(one) for one in facts.teacher_members],
    }
    known = {name: column for name, column in columns.items() if any(column)}
    lines = [f"| {' | '.join(row)} |" for row in (known, *zip(*known.values(), strict=True))]
    return "\n".join([lines[0], "|---" * len(known) + "|", *lines[1:]])


def _stated_license(member: Member) -> str:
    if not member.source.on_hub or member.license is None:
        return ""
    return code_span(member.license) if member.license else "none stated"


def _epochs(number: float) -> str:
    return f"{number:.4g} epoch{'' if number == 1 else 's'}"


def _training_images(facts: RunFacts) -> str:
    """How many there are to train on, and how many of them have labels."""
    split = f"split {code_span(facts.train_split, in_table=True)}" if _has_splits(facts.dataset) else ""
    if not facts.num_train:
        return f"a stream, {split}" if split else "a stream"
    unlabeled = 0 if facts.num_labeled is None else facts.num_train - facts.num_labeled
    if not unlabeled:
        return f"{facts.num_train:,}, {split}" if split else f"{facts.num_train:,}"
    labeled = f"{facts.num_labeled:,} with labels{f' ({split})' if split else ''}, " if facts.num_labeled else ""
    return f"{labeled}{unlabeled:,} without{'' if labeled else ' labels'}"


def _unanswered(facts: RunFacts) -> str:
    return f"{facts.num_unanswered:,}, which the teacher's term passed over" if facts.num_unanswered else ""


def _training(facts: RunFacts) -> str:
    environment = facts.environment
    versions = ", ".join(f"{name} {number}" for name, number in environment.get("libraries", {}).items())
    best = f", after step {facts.best_step:,}, when they were best" if facts.best_step is not None else ""
    rows = [
        ("steps", f"{facts.step:,} of {counted(facts.batch_size, 'image')}, {_epochs(facts.num_epochs)}"),
        ("images", _training_images(facts)),
        ("broken images", f"{facts.num_skipped:,} could not be decoded and were skipped" if facts.num_skipped else ""),
        ("views without an answer", _unanswered(facts)),
        ("weights", ("their moving average" if facts.weights == "ema" else "as trained") + best),
        ("device", f"{environment.get('num_processes', 1)} x {table_cell(str(environment.get('device')))}"),
        ("time", facts.minutes and f"{facts.minutes:.{1 if facts.minutes >= 1 else 2}f} minutes"),
        ("speed", None if not facts.images_per_second else f"{rate(facts.images_per_second)} images/s"),
        ("versions", versions),
        ("changed on the way", table_cell("; ".join(facts.changes)) if facts.changes else ""),
        ("commit of hf_deit", environment.get("hf_deit_commit")),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows if value)]
    parts = ["\n".join(table), "![Training curves](training_curves.png)"]
    if facts.recipe:
        recipe = dump_recipe(facts.recipe).strip()
        parts.append(f"The arguments, as in `recipe.yaml`:\n\n{code_block(recipe, 'yaml')}")
    return "\n\n".join(parts)
