"""Streams of random numbers: no two of a run, or of runs with other seeds, are the same."""

import itertools
import pathlib
import re
from typing import get_args

import jax
import numpy as np

from jax_unmask.rollout import row_keys
from jax_unmask.runtime import streams

OF_A_RUN = ("init", "numbers", "adapters", "training", "sampling", "likelihood", "policy")
OF_A_STEP = ("rollout", "experts", "alphas", "minibatches", "states", "masking", "environment")


def test_no_two_streams_coincide():
    """Every key that a run of three steps derives, by every name, for two seeds."""
    used = {}

    def note(name, key):
        bits = tuple(np.asarray(jax.random.key_data(key)).tolist())
        assert bits not in used, (name, used[bits])
        used[bits] = name

    for seed in (0, 1):
        root = streams.root(seed)
        note((seed,), root)
        for name in OF_A_RUN:
            note((seed, name), streams.stream(root, name))
        for turn in range(3):
            note((seed, "turn", turn), streams.stream(root, "turn", turn))
        for learner, step in itertools.product(("training", "policy"), range(3)):
            step_key = jax.random.fold_in(streams.stream(root, learner), step)
            note((seed, learner, step), step_key)
            for name in OF_A_STEP:
                stream = streams.stream(step_key, name)
                note((seed, learner, step, name), stream)
                # Rounds or passes, and the rows of each.
                for index in range(3):
                    key = streams.stream(step_key, name, index)
                    note((seed, learner, step, name, index), key)
                    for row, each in enumerate(row_keys(key, 4)):
                        note((seed, learner, step, name, index, row), each)
    assert {*OF_A_RUN, *OF_A_STEP, "turn"} == set(get_args(streams.StreamName))


def test_the_table_names_all_code_that_divides_keys():
    package = pathlib.Path(streams.__file__).parents[1]
    dividing = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if re.search(r"jax\.random\.(split|fold_in)\b", path.read_text())
    }
    assert streams.__doc__ is not None
    named = set(re.findall(r"^    (\w+\.\w+)  ", streams.__doc__, re.MULTILINE))
    # The benchmark asks for the shape of keys alone.
    assert dividing - {"runtime.streams", "benchmarks.compiled_flops"} == named


def test_seeds_become_keys_in_one_place():
    """Elsewhere keys of constants stand for shapes, or for numbers that nothing depends on."""
    package = pathlib.Path(streams.__file__).parents[1]
    found = {
        (path.relative_to(package).as_posix(), argument)
        for path in package.rglob("*.py")
        for argument in re.findall(r"random\.(?:key|PRNGKey)\((\w+)\)", path.read_text())
    }
    assert {each for each in found if not each[1].isdecimal()} == {("runtime/streams.py", "seed")}
