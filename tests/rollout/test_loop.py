"""Properties of the compiled rollout that hold for every policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask import policies
from jax_unmask.policies import LearnedPolicy, NetworkConfig, heuristics
from jax_unmask.policies.base import Action, Needs, row_uniform
from jax_unmask.rollout import Cache, Prompts, RolloutSettings, rollout, row_keys

VOCAB, MASK = 20, 2


@pytest.fixture
def model(random_model):
    return random_model


def make_prompts(seed: int, lengths: tuple[int, ...], width: int = 6) -> Prompts:
    tokens = np.random.default_rng(seed).integers(3, VOCAB, (len(lengths), width), dtype=np.int32)
    mask = np.arange(width) >= width - np.array(lengths)[:, None]
    return Prompts(tokens=np.where(mask, tokens, 1), mask=mask)


@dataclasses.dataclass(frozen=True)
class Lazy:
    """Fills each legal position with a given probability, possibly none at all."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def __call__(self, params, obs, keys):
        fill = obs.legal & (row_uniform(keys, obs.legal.shape[-1:]) < params)
        return Action(fill=fill, log_prob=jnp.zeros(fill.shape[0]))


THRESHOLD = heuristics.Threshold()
RECORDED = RolloutSettings(gen_length=8, block_length=8, record=True)
"""Settings of most tests of two rows, which share their program."""
POLICIES = [
    (THRESHOLD, THRESHOLD.params(threshold=0.5)),
    (heuristics.Random(), heuristics.Random().params(tokens_per_step=2)),
    (Lazy(), jnp.float32(0.3)),
]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Another policy, which the rollout believes to read the whole canvas; or to read less."""

    policy: object
    canvas: bool

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(self.policy.needs, canvas=self.canvas, top_k=2, entropy=True)

    def __call__(self, params, obs, keys):
        return self.policy(params, obs, keys)


@pytest.mark.parametrize(
    ("policy", "params", "guidance"),
    [(*POLICIES[0], 0.5), (*POLICIES[2], 0.0)],
    ids=["threshold", "lazy"],
)
def test_what_is_not_read_is_not_computed_and_changes_nothing(model, policy, params, guidance):
    prompts, keys = make_prompts(1, (6, 3, 1, 5)), row_keys(jax.random.key(7), 4)
    settings = RolloutSettings(
        gen_length=8, block_length=4, record=True, slots=2, guidance=guidance
    )
    whole, block = (
        rollout(*model, Reader(policy, canvas), params, prompts, keys, settings)
        for canvas in (True, False)
    )
    for name in ("tokens", "step_map", "nfe"):
        np.testing.assert_array_equal(getattr(block, name), getattr(whole, name))
    np.testing.assert_allclose(block.confidence, whole.confidence, atol=1e-6)
    seen, said = block.records.obs, whole.records.obs
    here = np.arange(8) // 4 == np.asarray(seen.block_start)[..., None] // 4
    here &= np.asarray(block.records.active)[..., None]
    for name in ("confidence", "top_probs", "entropy"):
        value, expected = np.asarray(getattr(seen, name)), np.asarray(getattr(said, name))
        np.testing.assert_allclose(value[here], expected[here], atol=1e-6)
        assert not value[~here].any()
        assert expected[~here].any()


@pytest.mark.parametrize(("policy", "params"), POLICIES[1:], ids=["random", "lazy"])
def test_a_row_does_not_depend_on_the_rows_beside_it(model, policy, params):
    prompts = make_prompts(1, (6, 3, 1, 5))
    settings = RolloutSettings(gen_length=8, block_length=4)
    keys = row_keys(jax.random.key(7), 4)
    together = rollout(*model, policy, params, prompts, keys, settings)
    order = np.array([2, 0, 3, 1])
    mixed = rollout(
        *model, policy, params, jax.tree.map(lambda x: x[order], prompts), keys[order], settings
    )
    for name in ("tokens", "step_map", "nfe"):
        np.testing.assert_array_equal(getattr(mixed, name), getattr(together, name)[order])
    # Other neighbours altogether, at the same compiled shape.
    others = jax.tree.map(
        lambda a, b: np.concatenate([a[:1], b[1:]]), prompts, make_prompts(2, (2, 6, 6, 4))
    )
    other_keys = jnp.concatenate([keys[:1], row_keys(jax.random.key(8), 3)])
    alone = rollout(*model, policy, params, others, other_keys, settings)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[0])
    assert alone.nfe[0] == together.nfe[0]


def test_confidences_are_those_of_the_step_that_filled_the_position(model):
    out = rollout(
        *model,
        THRESHOLD,
        THRESHOLD.params(threshold=0.5),
        make_prompts(5, (6, 2)),
        row_keys(jax.random.key(0), 2),
        RECORDED,
    )
    for row in range(2):
        for position in range(8):
            step = int(out.step_map[row, position])
            recorded = out.records.obs.confidence[step, row, position]
            assert out.confidence[row, position] == recorded
            assert out.tokens[row, position] == out.records.obs.candidate[step, row, position]
            assert out.records.action.fill[step, row, position]


def test_the_loop_stops_when_all_rows_are_done(model):
    params = THRESHOLD.params(threshold=0.0)
    out = rollout(
        *model, THRESHOLD, params, make_prompts(6, (6, 6)), row_keys(jax.random.key(0), 2), RECORDED
    )
    assert out.forwards == 1
    assert (out.nfe == 1).all()
    assert out.records.active.sum() == 2
    assert not np.asarray(out.records.obs.legal[1:]).any()


def test_a_block_is_left_after_as_many_steps_as_it_has_positions(model):
    settings = RolloutSettings(gen_length=8, block_length=4)
    out = rollout(
        *model,
        Lazy(),
        jnp.float32(0.0),
        make_prompts(7, (6, 6, 6, 6)),
        row_keys(jax.random.key(0), 4),
        settings,
    )
    assert (out.tokens == MASK).all()
    assert (out.step_map == -1).all()
    assert (out.nfe == 8).all()


def test_the_mask_token_is_never_written(model):
    denoiser, params = model
    # A denoiser that wants to write the mask token everywhere.
    biased = {**params, "head": params["head"].at[MASK].set(10 * params["head"].sum(0))}
    params_policy = THRESHOLD.params(threshold=0.9)
    out = rollout(
        denoiser,
        biased,
        THRESHOLD,
        params_policy,
        make_prompts(8, (6, 6)),
        row_keys(jax.random.key(0), 2),
        RECORDED,
    )
    assert not (out.tokens == MASK).any()


@pytest.mark.parametrize(("context", "cache"), [("full", None), ("block", Cache("dual"))])
@pytest.mark.default_cases("block-cache1")
def test_hidden_states_are_recorded_in_the_type_and_width_that_the_policy_reads(
    model, context, cache
):
    """In float32 and of the whole canvas, those of an 8B denoiser would fill a device."""
    denoiser = model[0].clone(config=dataclasses.replace(model[0].config, dtype=jnp.bfloat16))
    size = denoiser.config.hidden_size
    network = NetworkConfig(hidden_dim=16, feedforward_dim=16, time_embed_dim=8, hidden_size=size)
    policy = LearnedPolicy(network=network, context=context)
    params = policy.init_params(jax.random.key(1), 8)
    settings = RolloutSettings(gen_length=8, block_length=4, record=True, cache=cache)
    prompts, keys = make_prompts(11, (6, 4)), row_keys(jax.random.key(0), 2)
    out = rollout(denoiser, model[1], policy, params, prompts, keys, settings)
    assert out.records.obs.hidden.dtype == jnp.bfloat16
    assert out.records.obs.hidden.shape == (8, 2, 8 if context == "full" else 4, size)
    again = jax.jit(policy.log_prob)(params, out.records.obs, out.records.action)
    active = np.asarray(out.records.active)
    np.testing.assert_allclose(
        np.asarray(again)[active], np.asarray(out.records.action.log_prob)[active], atol=1e-5
    )


def test_a_watcher_sees_every_step_as_it_happens_and_changes_nothing(model):
    prompts, keys = make_prompts(1, (6, 3)), row_keys(jax.random.key(7), 2)
    params = THRESHOLD.params(threshold=0.5)
    unwatched = rollout(*model, THRESHOLD, params, prompts, keys, RECORDED)
    seen = []

    def watch(canvas, step_map):
        seen.append((np.array(canvas), np.array(step_map)))

    out = rollout(*model, THRESHOLD, params, prompts, keys, RECORDED, watch)
    for name in ("tokens", "step_map", "nfe"):
        np.testing.assert_array_equal(getattr(out, name), getattr(unwatched, name))
    jax.effects_barrier()
    assert len(seen) == out.forwards
    for forward, (canvas, step_map) in enumerate(seen):
        # Rows step together until they are done.
        filled = (out.step_map >= 0) & (out.step_map <= forward)
        np.testing.assert_array_equal(canvas, np.where(filled, out.tokens, MASK))
        np.testing.assert_array_equal(step_map, np.where(filled, out.step_map, -1))


@pytest.mark.thorough
def test_editing_rows_do_not_depend_on_the_rows_beside_them_or_on_slots(model):
    policy = policies.DynamicEdit(max_post_steps=3)
    # Low thresholds: tokens are filled early and edited often.
    params = policy.params(threshold=0.3, editing_threshold=0.2)
    prompts, keys = make_prompts(1, (6, 3, 1, 5)), row_keys(jax.random.key(7), 4)
    settings = RolloutSettings(gen_length=8, block_length=4, temperature=1.0, record=True)
    together = rollout(*model, policy, params, prompts, keys, settings)
    slotted = rollout(*model, policy, params, prompts, keys, dataclasses.replace(settings, slots=2))
    for name in ("tokens", "step_map", "nfe"):
        np.testing.assert_array_equal(getattr(slotted, name), getattr(together, name))
    order = np.array([2, 0, 3, 1])
    mixed = rollout(
        *model, policy, params, jax.tree.map(lambda x: x[order], prompts), keys[order], settings
    )
    np.testing.assert_array_equal(mixed.tokens, together.tokens[order])
    assert not (together.tokens == MASK).any()
    # Every draw differs, so edits go on until their number is up in both blocks.
    assert (together.nfe > 2 * 3).all()
    assert (together.nfe <= 8 + 2 * 3).all()
    assert together.records.active.shape[0] == 8 + 2 * 3
