"""Devices hold little besides the training state: loaded weights go when nothing reads them."""

import gc

import jax
import pytest

import mesh_runs
import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    vocabulary = ["1", "2", "3", "4", ".", "=", "+"]
    tiny.save_model(directory, vocabulary, hidden_size=64, head_dim=32, intermediate_size=128)
    return str(directory)


def held() -> int:
    """Bytes of all arrays of this process."""
    gc.collect()
    return sum(leaf.nbytes for leaf in jax.live_arrays())


CASES = {
    "sft": ("sft", {"learner.ema_decay": 0.0}, False),
    "state_sft": ("state_sft", {"learner.method": "random"}, False),
    "state_sft of traces": ("state_sft", {}, True),
    "tracerl": ("tracerl", {"value.enabled": False}, False),
    "tracerl with a reference": (
        "tracerl",
        {"value.enabled": False, "learner.reference_beta": 0.1},
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_copies_of_the_weights(model, name):
    """The parameters and two moments; the weights of before only where steps read them."""
    recipe, changes, keeps = CASES[name]
    changes = {"model.path": model} | changes
    before = held()
    made = mesh_runs.make_recipe(recipe, [1, 1, 1], **changes)
    weights = held() - before
    state = made.init()
    assert (held() - before) / weights == pytest.approx(4 if keeps else 3, abs=0.2)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state)
    del made, state

    # A run that restores its state makes nothing that the checkpoint is about to give it.
    before = held()
    made = mesh_runs.make_recipe(recipe, [1, 1, 1], **changes)
    like = made.like()
    assert (held() - before) / weights == pytest.approx(1 if keeps else 0, abs=0.2)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), like) == shapes
