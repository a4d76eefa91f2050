"""Contract: where a recipe states its total batch, a step has so many views on however many devices, or is refused.

A recipe's batch is the most that a device takes at once, and the accumulation follows; what the command line gives of
the two holds. Who takes no steps is not refused for devices that cannot share one.
"""

import json
import random
from dataclasses import replace

import pytest
from support import tiny

from hf_deit.commands import label
from hf_deit.commands.preview import preview_run
from hf_deit.errors import InputError
from hf_deit.recipes import resolve
from hf_deit.recipes.resolve import Arguments, resolve_arguments, resolved_recipe, save_recipe
from hf_deit.recipes.sameness import refused
from hf_deit.training import hardware
from hf_deit.training.arguments import DistillationTrainingArguments
from hf_deit.training.total_batch import Share, TotalBatch

BATCH, ACCUMULATION, TOTAL = "--per_device_train_batch_size", "--gradient_accumulation_steps", "--total_batch_size"


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Arguments as they are on so many devices."""

    def resolved(devices: int, *line: str, **settings: bool) -> Arguments:
        monkeypatch.setattr(resolve, "num_devices", lambda: devices)
        monkeypatch.setattr(DistillationTrainingArguments, "world_size", devices)
        return resolve_arguments([*line, "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"], **settings)

    return resolved


def share(arguments: Arguments) -> tuple[int, int]:
    return arguments.training.per_device_train_batch_size, arguments.training.gradient_accumulation_steps


B, B_384 = "deit_base", "deit_base_384"  # 1024 views, groups of 64, at most 128; 512, 32, 32
SHARES = [
    (B, 1, [], (128, 8)),
    (B, 2, [], (128, 4)),
    (B, 4, [], (128, 2)),
    (B, 8, [], (128, 1)),
    (B, 16, [], (64, 1)),
    (B_384, 1, [], (32, 16)),
    (B_384, 8, [], (32, 2)),
    (B_384, 16, [], (32, 1)),
    ("small_data", 2, [], (96, 4)),
    ("small_data", 16, [], (48, 1)),
    # What is given holds.
    (B, 1, [BATCH, "256"], (256, 4)),
    (B, 8, [BATCH, "64"], (64, 2)),
    (B, 8, [ACCUMULATION, "2"], (64, 2)),
    (B, 2, [BATCH, "64", ACCUMULATION, "8"], (64, 8)),
    (B, 1, ["--batch_size=64"], (64, 16)),
    (B_384, 1, [BATCH, "128", ACCUMULATION, "4"], (128, 4)),
    # Other totals, other groups, and none.
    (B, 3, [TOTAL, "960"], (64, 5)),
    (B, 3, [TOTAL, "1152"], (128, 3)),
    (B, 8, [TOTAL, "512"], (64, 1)),
    (B, 32, ["--mixup_group_size", "32"], (32, 1)),
    (B, 3, [TOTAL, "999", "--mixup", "0", "--cutmix", "0"], (111, 3)),
    ("own_images", 3, [TOTAL, "102"], (34, 1)),  # groups of whatever batch there is
    ("own_images", 3, [], (64, 1)),
]


@pytest.mark.parametrize(("recipe", "devices", "line", "expected"), SHARES)
def test_what_a_device_takes_of_a_step(on, recipe, devices, line, expected):
    arguments = on(devices, "--recipe", recipe, *line)
    assert share(arguments) == expected
    args = arguments.training
    assert args.train_batch_size * args.gradient_accumulation_steps * devices == args.total_train_batch_size
    assert args.total_batch_size in (args.total_train_batch_size, None)


REFUSED = [
    (
        B,
        3,
        [],
        "3 devices with whole groups of 64 .*: 2 or 4 devices can share it, or --total_batch_size 960 would do$",
    ),
    (B, 32, [], ": 16 devices can share it, or --mixup_group_size 32 would do, or --total_batch_size 2048 would do$"),
    (B, 8, [BATCH, "96"], "_size 96 and whole groups of 64 .* may be 128 x 1 or 64 x 2$"),
    (B, 1, [BATCH, "32"], "may be 64 x 16 or 128 x 8 or 256 x 4, or --mixup_group_size 32 would do$"),
    (B, 8, [BATCH, "192"], "may be 128 x 1 or 64 x 2, or --total_batch_size 1536 would do$"),
    (B, 1, [ACCUMULATION, "1"], "at most 128 views at once .* may be 1024 x 1 or .* --total_batch_size 128 would do$"),
    (B, 1, [ACCUMULATION, "3"], "steps 3 .* may be 256 x 4 or .* --total_batch_size 384 would do$"),
    (B, 1, [BATCH, "128", ACCUMULATION, "4"], "may be 128 x 8 or .* --total_batch_size 512 would do$"),
    (B, 4, [TOTAL, "1000"], ": --mixup_group_size 2 would do, or --total_batch_size 1024 would do$"),
    (B_384, 24, [], ": 16 devices can share it, or --total_batch_size 768 would do$"),
    ("own_images", 8, [TOTAL, "5"], ": --total_batch_size 16 would do$"),  # of one view none is mixed
    (B, 8, [TOTAL, "0"], r"total_batch_size must lie in \[1, "),
    (B, 8, [TOTAL, "512", BATCH, "0"], r"per_device_train_batch_size must lie in \[1, "),
]


@pytest.mark.parametrize(("recipe", "devices", "line", "said"), REFUSED)
def test_what_cannot_be_shared_out_is_refused_with_what_can(on, recipe, devices, line, said):
    with pytest.raises(InputError, match=said) as error:
        on(devices, "--recipe", recipe, *line)
    # What it names is taken.
    ways = str(error.value).rpartition(": ")[2]
    for option in ("--total_batch_size", "--mixup_group_size"):
        if f"{option} " in ways:
            on(devices, "--recipe", recipe, *line, option, ways.partition(f"{option} ")[2].split()[0])
    if " may be " in ways:
        for words in ways.partition(" may be ")[2].partition(", or")[0].split(" or "):
            batch, accumulation = words.split(" x ")
            assert share(on(devices, "--recipe", recipe, *line, BATCH, batch, ACCUMULATION, accumulation))
    for devices in [int(word) for word in ways.partition(" devices")[0].split(" or ") if word.isdigit()]:
        on(devices, "--recipe", recipe, *line)


def test_every_share_that_there_is_is_found_and_what_a_refusal_names_is_one():
    rng = random.Random(0)
    for _ in range(3000):
        group = rng.choice([1, 1, 2, 4])
        asked = TotalBatch(
            total=rng.randint(1, 48),
            num_devices=rng.randint(1, 5),
            at_most=rng.randint(1, 9),
            group_size=group,
            least=1 if group == 1 else 2,
            batch_size=rng.choice([None, None, rng.randint(1, 9)]),
            accumulation=rng.choice([None, None, rng.randint(1, 60)]),
        )
        whole = [
            Share(size, times)
            for times in range(1, asked.total + 1)
            for size in range(asked.total, 0, -1)
            if size * times * asked.num_devices == asked.total and size % group == 0 and size >= asked.least
            if (size == asked.batch_size if asked.batch_size else size <= asked.at_most)
            if asked.accumulation in (None, times)
        ]
        if whole:
            assert asked.share() == whole[0]
            continue
        with pytest.raises(InputError) as error:
            asked.share()
        for option, field in (("--total_batch_size ", "total"), ("--mixup_group_size ", "group_size")):
            words = str(error.value).partition(option)[2]
            if words:
                assert replace(asked, **{field: int(words.split()[0])}).share()


def test_the_devices_are_those_that_a_launcher_tells(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert hardware.num_devices() == 1
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert hardware.num_devices() == 16


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "total_batch_size" in record.getMessage()]


def test_a_line_says_how_the_total_is_met_where_not_as_it_is_stated(on, caplog):
    on(8, "--recipe", B)
    assert told(caplog) == []
    on(16, "--recipe", B)
    (line,) = told(caplog)
    assert line == (
        "a step of 1024 views (total_batch_size) on 16 devices: per_device_train_batch_size x "
        "gradient_accumulation_steps is 64 x 1 instead of 128 x 1"
    )


@pytest.mark.parametrize(
    ("line", "is_told"),
    [
        ([TOTAL, "256"], True),
        ([TOTAL, "512"], False),
        ([TOTAL, "256", "--learning_rate", "1e-5"], False),
        ([TOTAL, "256", "--scale_learning_rate", "true", "--min_learning_rate", "0"], False),
    ],
)
def test_a_line_says_that_a_rate_is_not_scaled_to_another_total(on, caplog, line, is_told):
    args = on(8, "--recipe", B_384, *line).training
    lines = [words for words in told(caplog) if "is not scaled" in words]
    assert bool(lines) is is_told
    if is_told:
        assert lines[0].startswith(
            "the learning rate 5e-06 was stated for a total_batch_size of 512, and is not scaled to 256"
        )
        assert args.peak_learning_rate == 5e-6


def test_a_scaled_rate_follows_the_total_that_is_used(on):
    assert on(8, "--recipe", B, TOTAL, "2048").training.peak_learning_rate == pytest.approx(2e-3)
    assert on(3, "--recipe", B, TOTAL, "768").training.peak_learning_rate == pytest.approx(7.5e-4)


def test_a_recipe_that_stands_on_another_wishes_for_less_at_once(on, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: deit_base\nper_device_train_batch_size: 64\n")
    assert share(on(8, "--recipe", str(tmp_path / "mine.yaml"))) == (64, 2)
    (tmp_path / "mine.yaml").write_text("base: deit_base\ntotal_batch_size: null\ngradient_accumulation_steps: '2'\n")
    arguments = on(8, "--recipe", str(tmp_path / "mine.yaml"))
    assert share(arguments) == (128, 2) and arguments.training.total_train_batch_size == 2048


def test_the_resolved_recipe_says_what_was_used_and_serves_other_devices(on, tmp_path):
    file = str(tmp_path / "recipe.yaml")
    before = on(1, "--recipe", B)
    save_recipe(before, file)
    recorded = resolved_recipe(before)
    assert (recorded["total_batch_size"], recorded[BATCH[2:]], recorded[ACCUMULATION[2:]]) == (1024, 128, 8)
    assert share(on(1, "--recipe", file)) == (128, 8)
    now = on(16, "--recipe", file)
    assert share(now) == (64, 1)
    assert [*refused(recorded, resolved_recipe(now))] == []  # it goes on there


def test_a_run_of_an_earlier_version_goes_on_with_its_own_total(on):
    """Whether that is the same, its checkpoint knows."""
    before = {**resolved_recipe(on(1, "--recipe", B)), "gradient_accumulation_steps": 1}
    del before["total_batch_size"]
    now = resolved_recipe(on(1, "--recipe", B, TOTAL, "128", "--min_learning_rate", "1e-5"))
    assert [*refused(before, now)] == []


def test_where_a_run_of_an_earlier_version_goes_on_the_refusal_names_its_total(on, tmp_path):
    origin = {"RunOrigin": {"attributes": {"origin": {"views_per_step": 12}}}}
    checkpoint = tmp_path / "run" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": origin}))
    command = ["--recipe", B, BATCH, "12", "--mixup_group_size", "4"]
    for wish in ("true", str(checkpoint)):
        go_on = [*command, "--resume_from_checkpoint", wish]
        with pytest.raises(InputError, match=r"\. The run that goes on has --total_batch_size 12$"):
            on(1, *go_on)
        assert share(on(1, *go_on, TOTAL, "12")) == (12, 1)
    (checkpoint / "trainer_state.json").unlink()
    for line in ([], ["--resume_from_checkpoint", "true"], ["--resume_from_checkpoint", "nowhere"]):
        with pytest.raises(InputError, match=r"--total_batch_size 1020 would do$"):
            on(1, *command, *line)


def test_in_python_what_does_not_make_the_total_is_refused(tmp_path):
    def trainer(**settings: int):
        args = tiny.arguments(tmp_path, distillation_type="none", **settings)
        return tiny.trainer(tiny.student(), args)

    trainer(total_batch_size=16, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    with pytest.raises(InputError, match=r"of 16 views .* may be 8 x 2 or .*, or --total_batch_size 8 would do"):
        trainer(total_batch_size=16, per_device_train_batch_size=8)
    made = trainer(per_device_train_batch_size=8)
    assert made.args.total_train_batch_size == 8


def test_who_takes_no_steps_needs_no_share_of_one(on, tmp_path, monkeypatch, caplog):
    on(3, "--recipe", "own_images")
    seen = []

    def see(arguments: Arguments, **settings: None) -> str:
        seen.append(arguments)
        return ""

    monkeypatch.setattr(label, "label_epochs", see)
    line = [TOTAL, "1024", "--use_cpu", "true"]
    images = ["--train_dir", "images", "--teacher_model_name_or_path", "a/b", "--teacher_labels", "labels"]
    assert label.main([*images, *line, "--output_dir", str(tmp_path / "run")]) == 0
    (arguments,) = seen
    assert share(arguments) == (64, 1) and arguments.training.total_train_batch_size == 1024
    monkeypatch.setattr(DistillationTrainingArguments, "world_size", 1)
    assert preview_run(["--recipe", "debug", *line], epoch=0, slots="0:2").width > 0
    assert told(caplog) == []
    with pytest.raises(InputError, match="2 or 4 devices can share it"):
        on(3, *images, *line)
