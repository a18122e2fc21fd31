"""Every experiment in configs/ is one that the commands accept."""

from __future__ import annotations

import pathlib
import runpy

import pytest

from jax_unmask import curriculum, validation

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = (
    *("quickstart", "gsm8k", "gsm8k_math", "block_scaling"),
    *(
        f"{name}:{task}"
        for name in ("tiny_sft", "tiny_policy", "tracerl")
        for task in ("sudoku", "arithmetic")
    ),
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
        validation.validate(config)


def test_all_of_them_are_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == {
        experiment.partition(":")[0] for experiment in EXPERIMENTS
    }


@pytest.mark.parametrize("name", ["tiny_sft", "tiny_policy", "tracerl", "tracerl_large"])
def test_an_unknown_choice_is_refused_with_those_that_there_are(name):
    make = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]
    with pytest.raises(ValueError, match=f"{name}.py:chess is unknown; use "):
        make("chess")
