"""Several examples in a row: the loss and its gradient are those of a row each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from jax_unmask.denoisers import Denoiser
from jax_unmask.learners.packing import pack
from jax_unmask.learners.state_sft import StateLearner
from jax_unmask.learners.states import AttentionBlocks, Responses
from jax_unmask.learners.surrogates import Autoregressive, RandomMasking, SemiAutoregressive, Trace
from jax_unmask.rollout import Prompts

pytestmark = pytest.mark.thorough

ROWS, PROMPT, LENGTH, BLOCK, WIDTH, END = 5, 6, 8, 4, 32, 10


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12)), min_size=1, max_size=12))
def test_every_token_has_one_place(spans):
    first = np.asarray([start for start, _ in spans])
    last = first + np.asarray([length for _, length in spans])
    packing = pack(first, last, 20)
    seen = []
    for row, segments in enumerate(packing.segment):
        for number, example in enumerate(packing.example[row]):
            places = packing.source[row][segments == number].tolist()
            if example < 0:
                assert not places
                continue
            assert places == list(range(first[example], last[example]))
            seen.append(int(example))
        # Whole segments, one after the other, padding behind them.
        kept = segments[segments >= 0]
        assert (np.diff(kept) >= 0).all() and (segments[: len(kept)] >= 0).all()
    assert sorted(seen) == list(range(len(spans)))


def test_an_example_that_fits_no_row_is_refused():
    with pytest.raises(ValueError, match=r"9 .*width=8"):
        pack(np.zeros(1, int), np.full(1, 9), 8)


def make_responses():
    rng = np.random.default_rng(0)
    prompts = np.asarray([6, 2, 4, 1, 3])
    texts = np.asarray([3, 7, 2, 5, 8])
    mask = np.arange(PROMPT) >= PROMPT - prompts[:, None]
    tokens = rng.integers(0, END, (ROWS, LENGTH))
    tokens[np.arange(LENGTH) >= texts[:, None]] = END
    steps = rng.integers(0, 3, (ROWS, LENGTH)) + np.arange(LENGTH) // BLOCK * 3
    return (
        Responses(
            Prompts(
                jnp.asarray(rng.integers(0, END, (ROWS, PROMPT)), jnp.int32), jnp.asarray(mask)
            ),
            jnp.asarray(tokens, jnp.int32),
            jnp.asarray(steps, jnp.int32),
        ),
        prompts,
        texts,
    )


def make_learner(surrogate, blocks=False, **changes):
    block = BLOCK if blocks else 1 if isinstance(surrogate, Autoregressive) else None
    config = tiny.denoiser_config(num_layers=2, attention_block=block, max_length=64, **changes)
    learner = StateLearner(
        denoiser=Denoiser(config),
        optimizer=optax.sgd(1.0),
        surrogate=surrogate,
        blocks=AttentionBlocks(BLOCK) if blocks else None,
        num_pads=1,
        chunk_size=2,
        positions_per_chunk=16,
    )
    return learner, tiny.random_params(config)


@pytest.mark.parametrize(
    ("surrogate", "settings"),
    [
        (RandomMasking(draws=2), {}),
        (SemiAutoregressive(block_length=BLOCK), {}),
        (Trace(shrink=2), {"family": "dream", "logits_shift": True}),
        (Autoregressive(), {"family": "dream", "logits_shift": True}),
        (RandomMasking(draws=1, mask_threshold="block"), {"blocks": True}),
        (Trace(), {"blocks": True, "family": "sdar", "qk_norm": True}),
    ],
)
def test_a_packed_batch_trains_as_rows_of_their_own(surrogate, settings):
    learner, params = make_learner(surrogate, **settings)
    responses, prompts, texts = make_responses()
    canvas = np.full(ROWS, LENGTH)
    if settings.get("blocks"):  # No block depends on later ones: what is behind the end can go.
        canvas = np.minimum(-(-(prompts + texts + 1) // BLOCK) * BLOCK - prompts, LENGTH)
    elif isinstance(surrogate, Autoregressive):
        canvas = np.minimum(texts + 1, LENGTH)
    packing = pack(PROMPT - prompts, PROMPT + canvas, WIDTH)
    assert (packing.example >= 0).sum(axis=1).max() > 1
    new, metrics = learner.step(learner.init(params, jax.random.key(1)), responses)
    packed, found = learner.step(learner.init(params, jax.random.key(1)), responses, packing)
    for name in ("loss", "grad_norm", "trained_tokens", "states"):
        assert float(found[name]) == pytest.approx(float(metrics[name]), rel=1e-5), name
    assert found["forwards"] < metrics["forwards"]
    assert not jax.tree.all(jax.tree.map(np.array_equal, new.params, params))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        packed.params,
        new.params,
    )


def test_examples_see_nothing_of_each_other():
    """Another example's tokens change nothing, up to the last bit."""
    learner, params = make_learner(Trace(), blocks=True)
    responses, prompts, _ = make_responses()
    packing = pack(PROMPT - prompts, np.full(ROWS, PROMPT + LENGTH), WIDTH)
    first, other = packing.example[0][:2]
    steps = np.array(responses.step_map)
    steps[np.arange(ROWS) != first] = -1  # Only the first one is trained.
    losses = []
    for shift in (0, 1):
        tokens = np.array(responses.tokens)
        tokens[other] = (tokens[other] + shift) % END
        changed = Responses(responses.prompts, jnp.asarray(tokens), jnp.asarray(steps))
        state = learner.init(params, jax.random.key(1))
        losses.append(float(learner.step(state, changed, packing)[1]["loss"]))
    assert losses[0] == losses[1] > 0
