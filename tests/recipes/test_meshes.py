"""Recipes on meshes: the numbers of one device, and no collective that they do not need."""

import json
import pathlib

import pytest

import devices
import mesh_runs
import tiny
from jax_unmask.denoisers.config import ExpertsConfig

pytestmark = pytest.mark.thorough

PROGRAM = pathlib.Path(mesh_runs.__file__)
EXPECTED = PROGRAM.parent / "recipes" / "collectives.json"
MESHES = {"data": [8, 1, 1], "fsdp": [1, 8, 1], "tensor": [4, 1, 2], "all": [2, 2, 2]}
VOCABULARY = ["1", "2", "3", "4", ".", "=", "+"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Random denoisers that every axis divides: 10 tokens, 2 heads, widths of 16."""
    directory = tmp_path_factory.mktemp("models")
    experts = ExpertsConfig(num_experts=4, per_token=2, size=8, layers=(True,))
    shapes = {
        "even": {},
        "blocks": {"family": "sdar", "qk_norm": True, "attention_block": 4},
        "experts": {"family": "llada_moe", "experts": experts},
    }
    for name, changes in shapes.items():
        tiny.save_model(directory / name, VOCABULARY, **changes)
    return directory


@pytest.fixture(scope="module")
def model(models):
    return models / "even"


def run(count, processes=1, **settings):
    """`run_all` with one run."""
    return [each["run"] for each in run_all(count, processes, run=settings)]


def run_all(count, processes=1, **runs):
    """Runs `mesh_runs` on so many devices of each process; what each of them printed."""
    return devices.run_in_processes(count, processes, PROGRAM, json.dumps(runs))


@pytest.fixture(scope="module")
def alone(model):
    """Metrics of the same steps on one device, by recipe and changes; in this process."""
    found = {}

    def of(recipe, steps, **changes):
        changes = {key: value for key, value in changes.items() if not key.startswith("mesh.")}
        key = json.dumps([recipe, changes])
        if len(found.get(key, [])) < steps:
            changes = {"model.path": str(model)} | changes
            found[key] = mesh_runs.steps(mesh_runs.make_recipe(recipe, [1, 1, 1], **changes), steps)
        return found[key][:steps]

    return of


def check_equal(found, expected):
    assert len(found) == len(expected)
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-4), step
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5), step


LISTED = {
    "policy_grpo": ("policy_grpo", "all", {}),
    "tracerl": ("tracerl", "all", {"value.enabled": False}),
    "tracerl on copies": ("tracerl", "data", {"value.enabled": False}),
    "sft": ("sft", "all", {}),
}
"""Cases with a list of their collectives: recipe, mesh and changes."""


OTHERS = {
    "supervised states, experts": ("state_sft", "experts", {"learner.method": "random"}),
    "blocks, adapters": (
        "tracerl",
        "blocks",
        {"rollout.block_length": 4, "value.enabled": False, "lora.rank": 2},
    ),
    "whole weights in rollouts": (
        "tracerl",
        "even",
        {"value.enabled": False, "mesh.rollout_tensor": 2, "rollout.temperature": 0.5},
    ),
    "several environments": ("policy_environments", "even", {}),
    "other rows in rollouts": ("policy_grpo", "even", {"mesh.rollout_fsdp": 4}),
}
"""Further cases of a few steps on eight devices: recipe, model and changes."""


@pytest.fixture(scope="module")
def on_eight(models):
    """A few steps of each of these on eight devices, and the collectives of those with a list."""
    runs = {
        name: {
            "recipe": recipe,
            "mesh": MESHES[mesh],
            "changes": {"model.path": str(models / "even")} | changes,
            "steps": 3,
            "collectives": True,
        }
        for name, (recipe, mesh, changes) in LISTED.items()
    } | {
        name: {
            "recipe": recipe,
            "mesh": MESHES["all"],
            "changes": {"model.path": str(models / model)} | changes,
            "steps": 2,
        }
        for name, (recipe, model, changes) in OTHERS.items()
    }
    (found,) = run_all(8, **runs)
    return found


@pytest.mark.parametrize("name", LISTED)
def test_three_steps_and_no_other_collectives(on_eight, alone, name):
    """A change of the program that makes devices talk more has to change the list."""
    recipe, _, changes = LISTED[name]
    check_equal(on_eight[name]["metrics"], alone(recipe, 3, **changes))
    assert on_eight[name]["collectives"] == json.loads(EXPECTED.read_text())[name]


@pytest.mark.parametrize("name", OTHERS)
def test_two_steps(models, on_eight, alone, name):
    recipe, model, changes = OTHERS[name]
    expected = alone(recipe, 2, **{"model.path": str(models / model)} | changes)
    check_equal(on_eight[name]["metrics"], expected)


def test_copies_of_a_model_sum_gradients_once_per_optimiser_step(on_eight):
    """The walk over chunks of states is the second loop, that over optimiser steps the first."""
    update = on_eight["tracerl on copies"]["collectives"]["update"]
    assert not [line for line in update if "in 2 loops" in line]
    sums = [line for line in update if "all-reduce" in line and line.count("f32[") > 12]
    assert len(sums) == 1 and sums[0].endswith("in 1 loops"), update


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("recipe", ["policy_grpo", "tracerl"])
def test_twenty_steps(model, alone, recipe, mesh):
    changes = {"model.path": str(model)}
    (found,) = run(8, recipe=recipe, mesh=MESHES[mesh], changes=changes, steps=20)
    check_equal(found["metrics"], alone(recipe, 20))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["policy_grpo", "tracerl"])
def test_twenty_steps_in_two_processes(model, alone, recipe):
    changes = {"model.path": str(model)}
    found = run(4, 2, recipe=recipe, mesh=[2, 2, 2], changes=changes, steps=20)
    assert found[0] == found[1]
    check_equal(found[0]["metrics"], alone(recipe, 20))


LONGER = {
    "adapters": ("tracerl", "even", {"lora.rank": 2, "value.enabled": False}),
    "blocks": ("tracerl", "blocks", {"rollout.block_length": 4}),
    "one ratio per response": (
        "tracerl",
        "even",
        {"learner.surrogate": "espo", "value.enabled": False},
    ),
    "experts": ("tracerl", "experts", {}),
    "supervised": ("sft", "even", {}),
    "supervised states": ("state_sft", "even", {}),
    "supervised states, blocks": ("state_sft", "blocks", {"learner.block_length": 4}),
    "rollouts of experts": ("policy_grpo", "experts", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONGER)
def test_twenty_steps_of_others(models, alone, name):
    recipe, model, changes = LONGER[name]
    changes = {"model.path": str(models / model)} | changes
    (found,) = run(8, recipe=recipe, mesh=MESHES["all"], changes=changes, steps=20)
    check_equal(found["metrics"], alone(recipe, 20, **changes))


@pytest.mark.slow
def test_checkpoints_of_other_topologies(model, tmp_path):
    """Saved on 8 devices, restored on 4, on 1 and on 8 again: bit for bit the same."""
    found, last = [], None
    for number, (count, mesh) in enumerate(
        [(8, [2, 2, 2]), (4, [1, 4, 1]), (1, [1] * 3), (8, [1, 4, 2])]
    ):
        directory = str(tmp_path / str(number))
        settings = {"recipe": "tracerl", "mesh": mesh, "changes": {"model.path": str(model)}}
        if last is not None:
            settings["restore"] = last
        found += run(count, save=directory, **settings)
        last = directory
    assert len({json.dumps(each["digests"]) for each in found}) == 1
