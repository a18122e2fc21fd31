"""Batches that teach nothing, or little: every method takes them, and says so in its metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from jax_unmask.denoisers import Denoiser, init_adapters, init_params
from jax_unmask.learners.states import AttentionBlocks, Responses
from jax_unmask.learners.surrogates import Elbo, FullyMasked, RandomMasking, Trace
from jax_unmask.learners.tracerl import TraceLearner, ValueSettings
from jax_unmask.rollout import Prompts

ROWS, PROMPT, LENGTH, END = 4, 3, 6, 10
CONFIGS = {
    "full": tiny.denoiser_config(),
    "block": tiny.denoiser_config(family="sdar", qk_norm=True, attention_block=4),
}
SURROGATES = {
    "trace": Trace(),
    "random_masking": RandomMasking(draws=2),
    "coupled": RandomMasking(draws=1, complement=True),
    "diffu_grpo": FullyMasked(),
    "espo": Elbo(draws=1),
}
# Every method with both kinds of attention; a value model and adapters with some of them.
METHODS = [("full", "espo", "adapters"), ("block", "trace", "value and adapters")]
MORE_METHODS = [
    ("full", "diffu_grpo", ""),
    ("full", "trace", "value"),
    ("full", "random_masking", "adapters"),
    ("block", "coupled", "adapters"),
    ("block", "diffu_grpo", ""),
    ("full", "coupled", ""),
    ("block", "random_masking", ""),
    ("block", "espo", ""),
]


def batch(tokens, step_map, prompt_lengths) -> Responses:
    lengths = np.asarray(prompt_lengths)[:, None]
    mask = np.arange(PROMPT) >= PROMPT - lengths
    prompts = Prompts(jnp.full((ROWS, PROMPT), 5, jnp.int32), jnp.asarray(mask))
    return Responses(prompts, jnp.asarray(tokens, jnp.int32), jnp.asarray(step_map, jnp.int32))


# Empty texts: they end with their first token. The last one was never written at all.
EMPTY = batch(
    np.full((ROWS, LENGTH), END),
    np.where(np.arange(ROWS)[:, None] == 3, -1, np.arange(LENGTH)),
    [3, 3, 1, 0],
)
MIXED = batch(
    [
        [1, 2, 3, 4, 5, 6],  # No end, and behind an empty prompt.
        [1, 2, 11, 11, 3, 11],  # Holes that were never filled.
        [END, 1, 2, 3, 4, 5],  # Empty, with something behind its end.
        [7, 8, 9, END, END, END],  # Left out.
    ],
    [[0, 0, 1, 1, 2, 3], [0, 1, -1, -1, 1, -1], [0, 1, 2, 3, 4, 5], [2, 1, 0, 3, 4, 5]],
    [0, 3, 3, 2],
)
ALL, NONE = np.ones(ROWS, bool), np.zeros(ROWS, bool)
KEPT = np.asarray([True, True, True, False])


@pytest.fixture(
    scope="module",
    params=[*METHODS, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE_METHODS)],
    ids=lambda method: " ".join(method).strip(),
)
def run(request):
    """Updates a fresh state with a batch; one program serves all batches of a method."""
    attention, surrogate, options = request.param
    config = CONFIGS[attention]
    params = init_params(config, jax.random.key(0))
    adapters = None
    if "adapters" in options:
        adapters = init_adapters(config, jax.random.key(1), 2, ("query",))
    learner = TraceLearner(
        denoiser=Denoiser(config),
        optimizer=optax.adam(0.1),
        surrogate=SURROGATES[surrogate],
        blocks=None if attention == "full" else AttentionBlocks(4),
        value=ValueSettings(optimizer=optax.adam(0.1)) if "value" in options else None,
        num_pads=0,
        end_ids=(END,),
        # Old log-probabilities of their own take as long to compile as the rest.
        minibatches=2 if surrogate in ("trace", "espo") and attention == "full" else 1,
        chunk_size=3,
    )

    def update(responses, rewards, kept):
        state = learner.init(params, jax.random.key(7), adapters)
        before = jax.tree.map(np.array, (state.params, state.opt_state))
        new, metrics = learner.update(
            *(state, responses, jnp.asarray(rewards), jnp.asarray(kept)),
            base=None if adapters is None else params,
        )
        after = jax.tree.map(np.array, (new.params, new.opt_state))
        assert int(new.step) == 1
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
        metrics = {name: float(value) for name, value in metrics.items()}
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        return before, after, metrics

    return update


def same(one, other) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.thorough
def test_batches_without_anything_to_train_change_nothing(run):
    rewards = np.asarray([1.0, -1.0, 1.0, -1.0], np.float32)
    # Nothing is kept, whatever stands there; and empty texts alone.
    for responses, reward, kept in ((MIXED, np.nan * rewards, NONE), (EMPTY, rewards, ALL)):
        before, after, metrics = run(responses, reward, kept)
        assert same(before, after)
        assert metrics["skipped"] == 1
        assert metrics["states"] == metrics["trained_tokens"] == metrics["grad_norm"] == 0


def test_odd_responses_are_trained_as_far_as_there_is_something(run):
    rewards = np.asarray([1.0, -1.0, 0.5, 0.0], np.float32)
    before, after, metrics = run(MIXED, rewards, KEPT)
    assert not same(before[0], after[0])
    assert metrics["skipped"] == 0
    assert metrics["states"] > 0
    assert 0 < metrics["trained_tokens"] <= 2 * (6 + 3)
    # What is left out may be anything.
    other = MIXED.replace(tokens=MIXED.tokens.at[3].set(11), step_map=MIXED.step_map.at[3].set(-1))
    rewards[3] = np.nan
    _, again, those = run(other, rewards, KEPT)
    assert same(after, again)
    assert those == metrics


def test_equal_rewards_move_nothing_but_the_value_model(run):
    before, after, metrics = run(MIXED, np.zeros(ROWS, np.float32), KEPT)
    assert metrics["skipped"] == 0
    assert same(before[0]["denoiser"], after[0]["denoiser"]) or metrics["kl"] > 0
