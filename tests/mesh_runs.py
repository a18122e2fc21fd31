"""A few steps of recipes on a mesh, as a program: `mesh_runs.py`, with the runs as JSON.

Run by tests that need more devices or processes than they have.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import tempfile
import unittest.mock
from typing import Any

import jax
import numpy as np

import devices
import tiny
from jax_unmask import recipes
from jax_unmask.planning import collectives
from jax_unmask.recipes import rollouts
from jax_unmask.runtime import distributed, mesh
from jax_unmask.runtime.checkpoints import Checkpoints
from jax_unmask.runtime.progress import Timer

_POLICY = {
    "model.param_dtype": "float32",
    "rollout.prompts_per_step": 8,
    "rollout.group_size": 2,
    # Half as many slots as rows: rows move in and out.
    "rollout.slots": 8,
    "learner.chunk_size": 16,
    "optimizer.lr": 1e-3,
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "policy_grpo": _POLICY,
    "policy_environments": {
        **_POLICY,
        # The second one's rows do not divide by eight.
        "environments": (
            "rollout.block_length=16",
            "rollout.gen_length=8 rollout.block_length=4 rollout.prompts_per_step=6 "
            "rollout.slots=4",
        ),
    },
    "tracerl": {
        "rollout.policy": "threshold:threshold=0.2",
        "rollout.prompts_per_step": 4,
        "rollout.group_size": 4,
        "rollout.slots": 8,
        "filter.rounds": 1,
        "learner.shrink": 2,
        "optimizer.lr": 1e-3,
        "value.lr": 1e-3,
    },
    "sft": {"data.batch_size": 16},
    "state_sft": {"data.batch_size": 16, "learner.method": "trace", "learner.chunk_size": 8},
}


class Programs:
    """A jitted function that compiles each of its programs once, so that tests can read them.

    Attributes:
        compiled: the programs, by their static arguments.
    """

    def __init__(self, function: Any, static: tuple[int, ...]) -> None:
        self._function, self._static = function, static
        self.compiled: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        key = tuple(arguments[index] for index in self._static)
        if key not in self.compiled:
            self.compiled[key] = self._function.lower(*arguments).compile()
        given = [each for index, each in enumerate(arguments) if index not in self._static]
        return self.compiled[key](*given)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return functools.partial(self, instance)

    def collectives(self) -> list[str]:
        """Those of the only program that was run, equal ones in one line."""
        (program,) = self.compiled.values()
        counts = collections.Counter(collectives.collectives(program.as_text()))
        return [
            f"{count:>4} x {each.bytes:>12,} B  {each}" for each, count in sorted(counts.items())
        ]


def make_recipe(name: str, mesh: list[int], **changes: Any) -> Any:
    """A small recipe with changes, on a mesh of these sizes (data, fsdp, tensor)."""
    config = recipes.config(name)
    small = tiny.SETTINGS[name] | _SETTINGS[name] | {"train.steps": 20}
    config.update_from_flattened_dict(small | changes)
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    return recipes.find(name)(recipes.read(config), pathlib.Path(tempfile.mkdtemp()))


def steps(recipe: Any, count: int) -> list[dict[str, float]]:
    """The metrics of so many steps, but for those that tell how well slots were used."""
    data, state, found = recipe.data(), recipe.init(), []
    for _ in range(count):
        state, metrics = recipe.step(state, next(data), Timer())
        found.append({name: float(value) for name, value in metrics.items()})
    return [
        {name: value for name, value in each.items() if name != "useful_forwards"} for each in found
    ]


def steps_and_collectives(recipe: Any, count: int) -> dict[str, Any]:
    """The metrics of so many steps, and the collectives of their programs."""
    learner = type(
        recipe._components.learner if hasattr(recipe, "_components") else recipe._learner
    )
    name = "step" if hasattr(learner, "step") else "update"
    update = Programs(getattr(learner, name), (0,))
    programs = {"update": update}
    module = rollouts if hasattr(recipe, "_rollouts") else sys.modules[type(recipe).__module__]
    with unittest.mock.patch.object(learner, name, update):
        if not hasattr(module, "rollout"):
            metrics = steps(recipe, count)
        else:
            programs["rollout"] = Programs(module.rollout, (0, 2, 6))
            with unittest.mock.patch.object(module, "rollout", programs["rollout"]):
                metrics = steps(recipe, count)
    found = {name: each.collectives() for name, each in programs.items() if each.compiled}
    return {"metrics": metrics, "collectives": found}


def carried_over(recipe: Any, restore: str | None, save: str) -> dict[str, str]:
    """Digests of a state that is restored, or made, and then saved."""
    if restore is None:
        state = recipe.init()
        # No seed gives this state, so what is restored comes from the file.
        state = dataclasses.replace(state, params=jax.tree.map(lambda x: 3 * x, state.params))
    else:
        state = recipe.like()
        with Checkpoints(restore) as checkpoints:
            found = checkpoints.restore(state.params, dataclasses.replace(state, params=None))
        assert found is not None
        wanted = [leaf.sharding for leaf in jax.tree.leaves(state.params)]
        assert [leaf.sharding for leaf in jax.tree.leaves(found.params)] == wanted
        state = dataclasses.replace(found.state, params=found.params)
    with Checkpoints(save) as checkpoints:
        rest = dataclasses.replace(state, params=None)
        checkpoints.save(1, params=state.params, state=rest, data={})
    return {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
    }


def _permuted(order: list[int], training: list[int]) -> Any:
    """A context in which meshes other than that of training have their devices in this order."""
    lay_out = mesh.over_network

    def over_network(shape: Any, found: Any) -> Any:
        return lay_out(shape, found if list(shape) == training else [found[k] for k in order])

    return unittest.mock.patch.object(mesh, "over_network", over_network)


def carry_out(run: dict[str, Any]) -> dict[str, Any]:
    """One run, as JSON asks for it."""
    if order := run.pop("order", None):
        with _permuted(order, run["mesh"]):
            return carry_out(run)
    recipe = make_recipe(run["recipe"], run["mesh"], **run["changes"])
    if run.get("collectives"):
        return steps_and_collectives(recipe, run["steps"])
    found: dict[str, Any] = {"metrics": steps(recipe, run.get("steps", 0))}
    if "save" in run:
        found["digests"] = carried_over(recipe, run.get("restore"), run["save"])
    return found


def main(runs: dict[str, Any]) -> None:
    distributed.initialize()
    found = {name: carry_out(run) for name, run in runs.items()}
    print(devices.RESULT + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
