"""Properties of every cache: rows are independent, and exact caches change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from jax_unmask import denoisers
from jax_unmask.denoisers.cache import empty_cache
from jax_unmask.denoisers.positions import default_positions
from jax_unmask.denoisers.transformer import forward
from jax_unmask.policies import LearnedPolicy, NetworkConfig, PerRow, heuristics
from jax_unmask.rollout import (
    Cache,
    Prompts,
    RolloutSettings,
    forwards,
    joined,
    parse_cache,
    rollout,
    row_keys,
)

ROWS, SLOTS, WIDTH, LENGTH, BLOCK, MASK = 8, 4, 6, 12, 4, 2
LEARNED = LearnedPolicy(
    network=NetworkConfig(hidden_dim=16, feedforward_dim=16, time_embed_dim=8, top_k=2)
)
CACHES = {
    "prefix": Cache("prefix", refresh_rows=2),
    "dual": Cache("dual", refresh_every=3, extra_tokens=2),
    "block": Cache("block", refresh_rows=3),
    "uncached": Cache("dual", refresh_every=1),
}


@pytest.fixture(scope="module")
def models(random_model):
    """Two layers; a denoiser with full attention, and one with block-causal attention."""
    config = dataclasses.replace(random_model[0].config, num_layers=2)
    params = denoisers.init_params(config, jax.random.key(0))
    params["head"] = params["head"] * 3.0
    blocked = dataclasses.replace(config, attention_block=BLOCK)
    return {
        False: (denoisers.Denoiser(config), params),
        True: (denoisers.Denoiser(blocked), params),
    }


def make_mix(rng: np.random.Generator):
    """Rows with prompts of any length, their keys, and settings that make their lengths vary."""
    tokens = rng.integers(3, 20, (ROWS, WIDTH), dtype=np.int32)
    mask = np.arange(WIDTH) >= WIDTH - rng.integers(1, WIDTH + 1, (ROWS, 1))
    prompts = Prompts(tokens=np.where(mask, tokens, 1), mask=mask)
    keys = row_keys(jax.random.key(0), jnp.asarray(rng.integers(0, 1000, ROWS)))
    return prompts, keys, rng.uniform(0.3, 2.0, ROWS).astype(np.float32)


@functools.cache
def network():
    return LEARNED.init_params(jax.random.key(1), LENGTH)


def run(model, mix, cache, slots=SLOTS, groups=1, **more):
    prompts, keys, temperature = mix
    params = network() | {"temperature": PerRow(jnp.asarray(temperature))}
    settings = RolloutSettings(
        gen_length=LENGTH,
        block_length=BLOCK,
        record=True,
        slots=slots,
        slot_groups=groups,
        cache=cache,
        **more,
    )
    return jax.device_get(rollout(*model, LEARNED, params, prompts, keys, settings))


def pick(mix, rows):
    return jax.tree.map(lambda leaf: leaf[rows], mix)


def join(mix, other, is_other):
    """Rows of one mix, those of another where it says so."""
    rows = np.where(is_other, ROWS, 0) + np.arange(ROWS)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b])[rows], mix, other)


def results(out, rows):
    """All that a row got, records included."""
    own = out.tokens, out.step_map, out.confidence, out.nfe, out.by_kind.full, out.by_kind.cached
    records = jax.tree.map(lambda leaf: leaf[:, rows], out.records)
    return jax.tree.map(lambda leaf: leaf[rows], own), records


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.thorough
def test_a_row_gets_the_same_whatever_rows_share_its_batch(models, name):
    cache = CACHES[name]
    model = models[cache.kind == "block"]

    @examples(max_examples=6, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def check(seed):
        rng = np.random.default_rng(seed)
        mix = make_mix(rng)
        expected = run(model, mix, cache)
        order, is_other = rng.permutation(ROWS), rng.random(ROWS) < 0.5
        mixed = run(model, join(pick(mix, order), make_mix(rng), is_other), cache)
        ours = np.flatnonzero(~is_other)
        jax.tree.map(
            np.testing.assert_array_equal, results(mixed, ours), results(expected, order[ours])
        )
        check_bookkeeping(expected, cache)

    check()


def check_bookkeeping(out, cache):
    kinds, active = out.by_kind, np.asarray(out.records.active)
    np.testing.assert_array_equal(active.sum(0), out.nfe)
    np.testing.assert_array_equal(active, np.arange(len(active))[:, None] < out.nfe)
    for leaf in jax.tree.leaves(out.records):
        assert not np.asarray(leaf)[~active].any()
    if cache.kind == "block":
        assert (kinds.full <= 1).all()
        assert (kinds.cached >= out.nfe).all()
    else:
        np.testing.assert_array_equal(kinds.full + kinds.cached, out.nfe)
        in_block = np.asarray(out.records.obs.step_in_block)
        is_full = active & (in_block % (cache.refresh_every or BLOCK) == 0)
        np.testing.assert_array_equal(kinds.full, is_full.sum(0))
    # Nobody waits for long: at most `full_rows - 1` slots at a time, but for the last rows.
    assert kinds.cached.sum() <= kinds.cached_executed * SLOTS
    assert kinds.full.sum() <= kinds.full_executed * kinds.full_rows
    assert 0 < out.useful_forward_fraction <= 1


@pytest.mark.parametrize("name", ["block", "uncached"])
def test_exact_caches_change_nothing(models, name):
    cache = CACHES[name]
    model = models[cache.kind == "block"]
    mix = make_mix(np.random.default_rng(5))
    if cache.kind == "block":
        # Of blocks to come the cached rollout has not seen anything yet.
        mix = (*mix[:2], np.full(ROWS, 1e6, np.float32))
    cached, plain = run(model, mix, cache), run(model, mix, None, slots=0)
    for leaf in ("tokens", "step_map", "nfe"):
        np.testing.assert_array_equal(getattr(cached, leaf), getattr(plain, leaf))
    np.testing.assert_allclose(cached.confidence, plain.confidence, atol=1e-5)
    legal = np.asarray(plain.records.obs.legal)
    assert legal.any()
    for leaf in ("legal", "masked", "step", "block_start"):
        np.testing.assert_array_equal(
            getattr(cached.records.obs, leaf), getattr(plain.records.obs, leaf)
        )
    np.testing.assert_allclose(
        np.asarray(cached.records.obs.confidence)[legal],
        np.asarray(plain.records.obs.confidence)[legal],
        atol=1e-5,
    )
    assert (cached.cost < plain.cost).all() == (cache.kind == "block")
    # What was recorded is what the policy saw: its likelihood can be computed again.
    again = jax.jit(LEARNED.log_prob)(
        network() | {"temperature": jnp.asarray(mix[2])}, cached.records.obs, cached.records.action
    )
    active = np.asarray(cached.records.active)
    np.testing.assert_allclose(
        np.asarray(again)[active], np.asarray(cached.records.action.log_prob)[active], atol=1e-5
    )


@pytest.mark.parametrize(
    ("each", "slots", "groups"), [(2, 3, 1), (4, 2, 2), (8, 1, 1), (2, 8, 1)], ids=str
)
@pytest.mark.default_cases("2-3-1")
def test_rows_of_a_prompt_share_its_keys_and_values(models, each, slots, groups):
    rng = np.random.default_rng(9)
    prompts, keys, temperature = make_mix(rng)
    # The longest, since a prompt that fills no block needs no forward of its own.
    chosen = np.argsort(-prompts.mask.sum(axis=1), kind="stable")[: ROWS // each]
    prompts = jax.tree.map(lambda x: np.repeat(x[chosen], each, axis=0), prompts)
    mix, cache = (prompts, keys, temperature), Cache("block")
    found = run(models[True], mix, cache, slots, groups, prompt_rows=each)
    plain = run(models[True], mix, Cache("block", refresh_rows=1), slots, groups)
    jax.tree.map(
        np.testing.assert_array_equal,
        (found.tokens, found.step_map, found.confidence, found.nfe, found.records),
        (plain.tokens, plain.step_map, plain.confidence, plain.nfe, plain.records),
    )
    assert found.by_kind.full.sum() * each == plain.by_kind.full.sum() > 0
    np.testing.assert_array_equal(found.by_kind.cached, plain.by_kind.cached)


@pytest.mark.parametrize("cache", ["none", "dual:extra_tokens=2", "prefix:horizon=2"])
@pytest.mark.default_cases("dual:extra_tokens=2")
def test_canvas_before_its_prompt(models, cache, monkeypatch):
    """As cuDNN gets it: padding last. Full attention does not know the order of its keys."""
    mix, cache = make_mix(np.random.default_rng(10)), parse_cache(cache)
    expected = run(models[False], mix, cache)
    monkeypatch.setattr(forwards, "padding_is_last", lambda config: True)
    try:
        rollout.clear_cache()
        found = run(models[False], mix, cache)
    finally:
        rollout.clear_cache()
    for leaf in ("tokens", "step_map", "nfe"):
        np.testing.assert_array_equal(getattr(found, leaf), getattr(expected, leaf))
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-5)


@pytest.mark.thorough
def test_parts_join_to_what_they_were_cut_from(models):
    mix = make_mix(np.random.default_rng(8))
    whole = run(models[False], mix, CACHES["dual"])
    parts = [
        run(models[False], pick(mix, rows), CACHES["dual"]) for rows in np.split(np.arange(ROWS), 2)
    ]
    assert joined(parts[:1]) is parts[0]
    together = joined(parts)
    for name in ("tokens", "step_map", "nfe", "cost"):
        np.testing.assert_array_equal(getattr(together, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(together.confidence, whole.confidence, atol=1e-5)
    np.testing.assert_array_equal(together.records.active, whole.records.active)
    np.testing.assert_array_equal(together.records.action.fill, whole.records.action.fill)
    assert together.forwards == parts[0].forwards + parts[1].forwards
    assert together.executed_cost == parts[0].executed_cost + parts[1].executed_cost
    assert together.slots == ROWS // 2


@pytest.mark.thorough
def test_what_was_not_computed_is_seen_as_it_was(models):
    """Dual cache: outside the block an observation is that of the forward that opened it."""
    out = run(models[False], make_mix(np.random.default_rng(6)), Cache("dual"))
    obs, found = out.records.obs, 0
    for row in range(ROWS):
        for step in range(int(out.nfe[row])):
            opening = step - int(obs.step_in_block[step, row])
            start = int(obs.block_start[step, row])
            outside = np.ones(LENGTH, bool)
            outside[start : start + BLOCK] = False
            np.testing.assert_array_equal(
                obs.confidence[step, row, outside], obs.confidence[opening, row, outside]
            )
            found += opening < step
            if opening < step:
                inside = obs.legal[step, row]
                assert (obs.confidence[step, row, inside] > 0).all()
    assert found


@pytest.mark.thorough
def test_lock_step_rows_wait_for_nobody(models):
    policy = heuristics.TopConfidence()
    settings = RolloutSettings(gen_length=LENGTH, block_length=BLOCK, cache=Cache("dual"))
    prompts, keys, _ = make_mix(np.random.default_rng(7))
    out = rollout(*models[False], policy, policy.params(tokens_per_step=1), prompts, keys, settings)
    blocks = LENGTH // BLOCK
    assert out.by_kind.full_rows == 1
    assert out.by_kind.full_executed == blocks * ROWS
    assert out.by_kind.cached_executed == LENGTH - blocks
    assert out.useful_forward_fraction == 1.0
    window = (LENGTH - blocks) * BLOCK / (WIDTH + LENGTH)
    np.testing.assert_allclose(out.cost, blocks + window, rtol=1e-6)


@pytest.mark.thorough
def test_a_horizon_hides_what_lies_behind_it(models):
    """Two blocks: the second step of a row is that of its first block alone, behind its prompt."""
    denoiser, params = models[False]
    prompts, keys, _ = make_mix(np.random.default_rng(0))
    policy, filled = heuristics.TopConfidence(), BLOCK // 2
    steps = []
    for horizon in (0, BLOCK, None):
        settings = RolloutSettings(
            gen_length=2 * BLOCK,
            block_length=BLOCK,
            temperature=0.0,
            cache=Cache("prefix", horizon=horizon),
        )
        chosen = policy.params(tokens_per_step=filled)
        steps.append(rollout(denoiser, params, policy, chosen, prompts, keys, settings))
    # The horizon of one block reaches the end of the canvas: that is prefix as it was.
    np.testing.assert_array_equal(steps[1].tokens, steps[2].tokens)
    assert (np.asarray(steps[0].cost) < np.asarray(steps[2].cost)).all()
    # By hand: keys and values of the prompt from the opening forward, then the block by itself.
    out, length = steps[0], WIDTH + BLOCK
    first = np.where(out.step_map[:, :BLOCK] == 0, out.tokens[:, :BLOCK], MASK)
    whole = np.concatenate([prompts.tokens, np.full((ROWS, 2 * BLOCK), MASK)], axis=1)
    real = np.concatenate([prompts.mask, np.ones((ROWS, 2 * BLOCK), bool)], axis=1)
    cache = empty_cache(denoiser.config, ROWS, whole.shape[1])
    positions = default_positions(jnp.asarray(real), whole.shape[1])
    _, cache = forward(denoiser.config, params, whole, real, positions, cache=cache)
    hidden, _ = forward(
        denoiser.config,
        params,
        first,
        None,
        positions[:, WIDTH:length],
        cache=cache,
        cached_mask=jnp.asarray(real & (np.arange(real.shape[1]) < WIDTH)),
    )
    logits = denoiser.apply({"params": params}, hidden, method="logits")
    logits = logits.at[..., MASK].set(-jnp.inf)
    late = np.asarray(out.step_map[:, :BLOCK]) == 1
    np.testing.assert_array_equal(
        np.argmax(logits, axis=-1)[late], np.asarray(out.tokens[:, :BLOCK])[late]
    )


@pytest.mark.parametrize("kind", ["prefix", "dual", "block"])
def test_a_cache_for_another_kind_of_attention_is_refused(models, kind):
    prompts, keys, _ = make_mix(np.random.default_rng(0))
    policy, settings = (
        heuristics.Threshold(),
        RolloutSettings(gen_length=LENGTH, block_length=BLOCK, cache=Cache(kind)),
    )
    with pytest.raises(ValueError, match=f"cache '{kind}' is for"):
        rollout(*models[kind != "block"], policy, policy.params(), prompts, keys, settings)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("duel", "no cache 'duel'"),
        ("dual:every=3", "no setting 'every'"),
        ("dual:refresh_every=often", "refresh_every=often is not"),
        ("dual:refresh_every=-1", "refresh_every = -1"),
        ("prefix:extra_tokens=4", "extra_tokens = 4"),
        ("dual:horizon=4", "horizon = 4"),
        ("block:refresh_every=2", "refresh_every = 2"),
        ("none:refresh_every=2", "'none:refresh_every=2': "),
        ("dual:refresh_rows=0", "refresh_rows = 0"),
    ],
)
def test_impossible_caches_are_refused(text, named):
    with pytest.raises(ValueError, match=named):
        parse_cache(text)


def test_guidance_has_no_cache():
    with pytest.raises(ValueError, match=r"guidance = 0\.5"):
        RolloutSettings(gen_length=4, block_length=4, guidance=0.5, cache=Cache("dual"))
