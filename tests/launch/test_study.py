"""launch/tracerl_study.sh starts trainings that the trainer accepts, each after what it needs."""

from __future__ import annotations

import ast
import pathlib
import runpy
import shlex

import pytest

from jax_unmask import recipes
from jax_unmask.commands import curriculum

ROOT = pathlib.Path(__file__).parents[2]


def trainings(fakes, tmp_path, study: str) -> list[dict[str, str]]:
    """Flags of the trainings that a study starts for one seed, in order."""
    # What is trained exists afterwards, so that nothing is trained twice.
    fakes.install(
        tmp_path / "bin",
        "python",
        'for each; do case $each in --workdir=*) mkdir -p "${each#*=}/model" ;; esac; done',
    )
    process = fakes.start(
        *("tracerl_study.sh", study, str(tmp_path / "runs")),
        path=tmp_path / "bin",
        environment={"SEEDS": "7"},
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    found = []
    for line in fakes.calls(tmp_path / "bin"):
        command, module, *flags = shlex.split(line)[1:]
        assert (command, module) == ("-m", "jax_unmask.train")
        found.append(dict(flag.removeprefix("--").split("=", 1) for flag in flags))
    return found


def value_of(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.mark.parametrize(
    ("study", "starts", "runs"),
    [
        ("full", [], ["trace", "random", "coupled", "shrink1", "shrink4", "shrink16", "value"]),
        ("block", ["block_arithmetic"], ["trace", "random", "coupled", "value"]),
        ("scaling", ["block_arithmetic"], ["4to8"]),
        (
            "sft",
            ["early_arithmetic", "block_arithmetic"],
            [f"full-{name}" for name in ("trace", "semi_ar", "random4", "random1")]
            + [f"block-{name}" for name in ("trace", "block2", "block1")],
        ),
    ],
)
def test_each_training_is_valid_and_comes_after_its_start(
    fakes, tmp_path, monkeypatch, study, starts, runs
):
    monkeypatch.chdir(ROOT)
    there, seen = {"arithmetic"}, []
    for flags in trainings(fakes, tmp_path, study):
        workdir = pathlib.Path(flags.pop("workdir"))
        path, _, argument = flags.pop("config").partition(":")
        make = runpy.run_path(path)["get_config"]
        config = make(argument) if argument else make()
        config.lock()
        config.update_from_flattened_dict(
            {key.removeprefix("config."): value_of(text) for key, text in flags.items()}
        )
        if config.recipe == curriculum.RECIPE:
            config, *later = [stage.config for stage in curriculum.stages(config, workdir)]
            lengths = [(each.rollout.block_length, each.learner.block_length) for each in later]
            assert lengths == [(4, 8), (8, None)]
            assert config.learner.block_length == 8
            assert len({config.seed, *(each.seed for each in later)}) == 3
        else:
            recipes.read(config)
        assert config.model.path is None or config.model.path in there
        there.add(str(workdir / "model"))
        seen.append(workdir.relative_to(tmp_path / "runs"))
    trained = [path for path in seen if path.parts[0] == f"tracerl-{study}"]
    assert [path.name for path in trained] == [f"{name}-7" for name in runs]
    assert [path.name for path in seen if path not in trained] == starts
