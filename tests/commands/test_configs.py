"""Every experiment in configs/ is one that the commands accept."""

from __future__ import annotations

import pathlib
import runpy

import pytest

from jax_unmask import recipes, settings
from jax_unmask.commands import curriculum
from jax_unmask.commands import eval as evaluate
from jax_unmask.evaluation import axes, candidates

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS_OF_PAPER = tuple(
    f"{model}_{length}_{block}_{task}"
    for model in ("llada", "dream")
    for length in (256, 512)
    for block in ("32", "full")
    for task in ("gsm8k", "math500", "humaneval", "mbpp")
)
EXPERIMENTS = (
    *("quickstart", "gsm8k", "gsm8k_math", "gsm8k_math:32", "kodcode", "block_scaling"),
    *("tiny_block_scaling:1", "published:scales", "published:pass_at_k"),
    *("tiny_block_sft", "tiny_state_sft:full", "tiny_state_sft:block", "tiny_sft:word_problems"),
    *("universal_policy", "universal_policy:sudoku", "universal_policy:all-countdown"),
    *(
        f"{name}:{task}"
        for name in ("tiny_sft", "tiny_policy")
        for task in ("sudoku", "arithmetic", "countdown")
    ),
    *("tracerl:full", "tracerl:block"),
    *(f"published:{name}" for name in EXPERIMENTS_OF_PAPER),
    "published:all",
    *(
        f"tracerl_large:{model},{task}"
        for model in ("llada", "dream", "sdar-4b", "sdar-8b")
        for task in ("gsm8k", "math", "code")
    ),
)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_is_valid(experiment, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    name, _, argument = experiment.partition(":")
    make = runpy.run_path(f"configs/{name}.py")["get_config"]
    config = make(argument) if argument else make()
    if config.recipe == curriculum.RECIPE:
        assert len(curriculum.stages(config, tmp_path)) > 1
    else:
        recipes.read(config)


def test_all_published_settings_make_one_sweep(monkeypatch):
    monkeypatch.chdir(ROOT)
    make = runpy.run_path("configs/published.py")["get_config"]
    found = set()
    for each in axes.combinations(make("all")):
        config = each.config
        config.eval.policies = ("threshold",)
        for candidate in candidates.candidates(recipes.read(config)):
            for block in candidate.block_lengths:
                found.add(_environment(config, block))
    assert len(found) == 32
    singles = [make(name) for name in EXPERIMENTS_OF_PAPER]
    assert found == {_environment(one, one.rollout.block_length) for one in singles}
    assert make("llada_256_32") == make("llada_256_32_gsm8k")


def _environment(config, block):
    return config.model.path, config.task.name, config.rollout.gen_length, block


@pytest.mark.parametrize("trained_as", ["gsm8k", "gsm8k_math", "gsm8k_math:32", "kodcode"])
def test_every_training_can_be_measured_on_a_longer_canvas(trained_as, monkeypatch):
    """Expert steering is for full diffusion, which an evaluation need not be."""
    monkeypatch.chdir(ROOT)
    name, _, argument = trained_as.partition(":")
    make = runpy.run_path(f"configs/{name}.py")["get_config"]
    config = make(argument) if argument else make()
    config.rollout.gen_length = 512
    config.eval.block_lengths = (32, 0)
    text = evaluate.list_measurements(config, speed=50, nfe=None)
    assert "hours at 50 row forwards per second" in text


def test_all_of_them_are_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == {
        experiment.partition(":")[0] for experiment in EXPERIMENTS
    }


@pytest.mark.parametrize(
    "name",
    [
        *("tiny_sft", "tiny_policy", "tracerl", "tracerl_large", "published"),
        *("tiny_block_scaling", "tiny_state_sft", "gsm8k_math"),
    ],
)
def test_an_unknown_choice_is_refused_with_those_that_there_are(name):
    make = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]
    with pytest.raises(ValueError, match=f"{name}.py:chess is unknown; use "):
        make("chess")


def test_the_reference_page_is_that_of_the_declarations():
    from jax_unmask.recipes.__main__ import page

    assert (ROOT / "docs" / "config.md").read_text() == page(), (
        "run python -m jax_unmask.recipes > docs/config.md"
    )


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_value_out_of_its_range_is_refused(name):
    for each in settings.declared(recipes.defaults(name)):
        bad = [each.le and each.le * 2, each.lt, each.gt, each.ge is not None and each.ge - 1]
        wrong = [value for value in bad if value is not None and value is not False]
        wrong += [float("nan"), float("inf"), 1e300] if each.kind is float else []
        wrong += ["no such choice"] if each.choices else []
        wrong += [True] if each.kind in (int, float) else [object()]
        for value in wrong:
            with pytest.raises(settings.SettingError):
                each.check((value,) if each.is_tuple else value)
        assert len(each.help) > 4
