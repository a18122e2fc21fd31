"""Fewer slots than rows: the same results with fewer wasted forwards."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from devices import run_on_devices
from jax_unmask.policies import LearnedPolicy, Needs, NetworkConfig, PerRow, heuristics
from jax_unmask.rollout import Cache, Prompts, RolloutSettings, rollout, row_keys
from jax_unmask.runtime import accelerators

ROWS, WIDTH, LENGTH = 12, 6, 8
LEARNED = LearnedPolicy(
    network=NetworkConfig(hidden_dim=16, feedforward_dim=16, time_embed_dim=8, top_k=2)
)
POLICIES = {"threshold": heuristics.Threshold(), "learned": LEARNED}
WHOLE = RolloutSettings(gen_length=LENGTH, block_length=4, record=True)
IN_SLOTS = dataclasses.replace(WHOLE, slots=5)
"""Settings of most tests, so that they share the compiled rollouts."""


def make_prompts(rng: np.random.Generator, rows: int = ROWS) -> Prompts:
    tokens = rng.integers(3, 20, (rows, WIDTH), dtype=np.int32)
    mask = np.arange(WIDTH) >= WIDTH - rng.integers(1, WIDTH + 1, (rows, 1))
    return Prompts(tokens=np.where(mask, tokens, 1), mask=mask)


def make_params(name: str, rng: np.random.Generator):
    """Settings that differ between rows, so that their numbers of forwards do too."""
    if name == "learned":
        params = LEARNED.init_params(jax.random.key(1), LENGTH)
        temperature = jnp.asarray(rng.uniform(0.3, 3.0, ROWS), jnp.float32)
        return params | {"temperature": PerRow(temperature)}
    return {"threshold": PerRow(jnp.asarray(rng.random(ROWS), jnp.float32))}


def quota(tokens_per_step):
    """Settings of a quota rule with a number of positions for each row."""
    params = heuristics.Random().params(tokens_per_step=tokens_per_step)
    return params | {"tokens_per_step": PerRow(params["tokens_per_step"])}


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """Fills by a threshold for each step, as many as there happen to be rows."""

    @property
    def needs(self):
        return Needs()

    def __call__(self, params, obs, keys):
        return heuristics.Threshold()({"threshold": params["thresholds"][obs.step]}, obs, keys)


@pytest.mark.thorough
def test_an_array_as_long_as_the_batch_is_not_taken_for_settings_of_rows(random_model):
    rng = np.random.default_rng(4)
    params = {"thresholds": jnp.asarray(rng.random(ROWS), jnp.float32)}
    keys, prompts = row_keys(jax.random.key(0), ROWS), make_prompts(rng)
    found = [
        rollout(*random_model, Scheduled(), params, prompts, keys, each)
        for each in (WHOLE, IN_SLOTS)
    ]
    assert_same(*found)


def assert_same(found, expected):
    """Choices are equal; probabilities agree to the rounding of another batch size."""

    def same(path, a, b):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(path))
        else:
            np.testing.assert_array_equal(a, b, err_msg=str(path))

    def results(out):
        return out.tokens, out.step_map, out.confidence, out.nfe, out.records

    jax.tree_util.tree_map_with_path(same, results(found), results(expected))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.thorough
def test_rows_get_the_same_in_any_number_of_slots(random_model, name):
    policy = POLICIES[name]

    def run(slots, params, prompts, keys, groups=1):
        settings = dataclasses.replace(WHOLE, slots=slots, slot_groups=groups)
        return rollout(*random_model, policy, params, prompts, keys, settings)

    @examples(max_examples=8, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([(5, 1), (6, 3)]))
    def check(seed, shape):
        rng = np.random.default_rng(seed)
        prompts, params = make_prompts(rng), make_params(name, rng)
        keys = row_keys(jax.random.key(seed), ROWS)
        expected = run(0, params, prompts, keys)
        slots, groups = shape
        found = run(slots, params, prompts, keys, groups)
        assert_same(found, expected)
        nfe = np.asarray(expected.nfe).reshape(groups, -1)
        each = slots // groups
        # A slot is never idle while a row waits, so the last ones differ by a row's steps at most.
        assert found.forwards <= (nfe.sum(1) // each + nfe.max(1)).max()
        assert found.forwards >= max(nfe.max(), -(-nfe.sum(1).max() // each))
        assert found.records.active.sum() == nfe.sum()

    check()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("threshold", {"slots": 4, "prompt_rows": 2}),
        ("threshold", {"slots": 5, "prompt_rows": 3, "temperature": 0.7}),
        ("learned", {"prompt_rows": 4, "block_length": 8}),
        ("learned", {"slots": 6, "slot_groups": 2, "prompt_rows": 4}),
    ],
    ids=["slots", "drawn", "all", "split"],
)
@pytest.mark.default_cases("slots")
def test_rows_of_a_prompt_share_their_first_forward(random_model, name, changes):
    rng, each = np.random.default_rng(5), changes["prompt_rows"]
    prompts = make_prompts(rng, ROWS // each)
    prompts = jax.tree.map(lambda x: np.repeat(x, each, axis=0), prompts)
    params, keys = make_params(name, rng), row_keys(jax.random.key(5), ROWS)
    settings = dataclasses.replace(WHOLE, **changes)
    plain = dataclasses.replace(settings, slots=0, slot_groups=1, prompt_rows=1)
    found, expected = (
        rollout(*random_model, POLICIES[name], params, prompts, keys, shape)
        for shape in (settings, plain)
    )
    assert_same(found, expected)
    assert found.useful_forward_fraction <= 1


def test_there_are_no_more_slots_than_rows():
    assert dataclasses.replace(WHOLE, slots=99).num_slots(ROWS, 8) == ROWS
    assert WHOLE.num_slots(ROWS, 8) == ROWS


@pytest.mark.parametrize(
    ("settings", "rows", "slots"),
    [
        ({}, 128, 7),
        ({}, 8, 1),
        ({"cache": Cache("dual")}, 1024, 52),
        ({"cache": Cache("dual")}, 32, 8),  # Enough positions for a forward.
        ({"cache": Cache("dual"), "slot_groups": 8}, 32, 32),
        ({"slots": 64}, 128, 64),
    ],
)
def test_accelerators_have_as_few_slots_as_keep_forwards_useful(monkeypatch, settings, rows, slots):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert RolloutSettings(256, 32, **settings).num_slots(rows, 200) == slots


@pytest.mark.parametrize(
    ("name", "cache", "rows", "slots"),
    [
        ("h100x1", "dual", 128, 10),
        ("v6e-1", "dual", 128, 18),
        ("v6e-1", None, 8, 2),
        ("v5p-8", None, 8, 1),
    ],
)
def test_slots_make_products_as_long_as_the_reading_of_weights(name, cache, rows, slots):
    device, _ = accelerators.parse(name)
    settings = RolloutSettings(256, 32, cache=cache and Cache(cache))
    assert settings.slots_of_group(rows, 200, device) == slots


@pytest.mark.thorough
def test_nine_of_ten_forwards_are_useful_where_lengths_vary_fourfold(random_model):
    rows, slots = 256, 16
    rng = np.random.default_rng(2)
    per_step = np.where(rng.random(rows) < 0.5, 1, 4)
    policy = heuristics.TopConfidence()
    settings = RolloutSettings(gen_length=LENGTH, block_length=LENGTH)
    arguments = (
        *random_model,
        policy,
        quota(per_step),
        make_prompts(rng, rows),
        row_keys(jax.random.key(0), rows),
    )
    whole = rollout(*arguments, settings)
    out = rollout(*arguments, dataclasses.replace(settings, slots=slots))
    np.testing.assert_array_equal(out.nfe, LENGTH // per_step)
    np.testing.assert_array_equal(out.tokens, whole.tokens)
    useful = int(out.nfe.sum()) / (slots * int(out.forwards))
    assert useful >= 0.9
    assert out.useful_forward_fraction == pytest.approx(useful)
    assert whole.useful_forward_fraction == pytest.approx(out.nfe.mean() / LENGTH)
    assert useful > 1.3 * whole.useful_forward_fraction


@pytest.mark.parametrize("settings", [WHOLE, IN_SLOTS], ids=["all", "slots"])
@pytest.mark.default_cases("slots")
def test_absent_rows_are_not_rolled_out(random_model, settings):
    rng = np.random.default_rng(3)
    policy, params, prompts = POLICIES["learned"], make_params("learned", rng), make_prompts(rng)
    keys = row_keys(jax.random.key(0), ROWS)
    everybody = rollout(*random_model, policy, params, prompts, keys, settings)
    for present in (np.arange(ROWS) < 7, np.arange(ROWS) % 3 > 0):
        some = prompts.replace(present=present)
        out = rollout(*random_model, policy, params, some, keys, settings)
        np.testing.assert_array_equal(out.nfe, np.where(present, everybody.nfe, 0))
        np.testing.assert_array_equal(out.tokens[present], everybody.tokens[present])
        assert (np.asarray(out.tokens)[~present] == 2).all()
        assert out.records.active.sum() == out.nfe.sum()
        assert out.forwards <= everybody.forwards


def test_batches_and_settings_share_one_program(random_model):
    policy = POLICIES["threshold"]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        params, keys = make_params("threshold", rng), row_keys(jax.random.key(seed), ROWS)
        rollout(*random_model, policy, params, make_prompts(rng), keys, IN_SLOTS)
        if seed == 0:
            compiled = rollout._cache_size()
    assert rollout._cache_size() == compiled


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"slots": -1}, "slots = -1"),
        ({"slots": 6, "slot_groups": 4}, "slots = 6.*slot_groups=4"),
        ({"slot_groups": 0}, "slot_groups=0 "),
    ],
)
def test_impossible_slots_are_refused(kwargs, named):
    with pytest.raises(ValueError, match=named):
        RolloutSettings(gen_length=4, block_length=4, **kwargs)


def test_rows_that_do_not_divide_among_the_groups_are_refused():
    settings = RolloutSettings(gen_length=4, block_length=4, slots=5, slot_groups=5)
    with pytest.raises(ValueError, match=r"12 rows .* slot_groups=5"):
        settings.num_slots(ROWS, 8)


ON_A_MESH = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax_unmask import denoisers
from jax_unmask.policies import PerRow, heuristics
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys
from jax.sharding import NamedSharding
from jax_unmask.runtime.mesh import make_mesh, spec

config = denoisers.DenoiserConfig(
    family="llada", vocab_size=20, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2,
    head_dim=8, intermediate_size=24, rope_theta=1e4, norm_eps=1e-5, max_length=64,
    tie_embeddings=False, mask_token_id=2, eos_token_id=1, pad_token_id=1,
)
model = denoisers.Denoiser(config), denoisers.init_params(config, jax.random.key(0))
rng, rows = np.random.default_rng(0), 32
tokens = np.repeat(rng.integers(3, 20, (rows // 2, 6), dtype=np.int32), 2, axis=0)
prompts, keys = Prompts(tokens, np.ones(tokens.shape, bool)), row_keys(jax.random.key(0), rows)
policy = heuristics.TopConfidence()
params = policy.params(tokens_per_step=rng.integers(1, 9, rows))
params["tokens_per_step"] = PerRow(params["tokens_per_step"])
expected = rollout(*model, policy, params, prompts, keys, RolloutSettings(8, 4))
mesh = make_mesh()
jax.set_mesh(mesh)
split = NamedSharding(mesh, spec("batch"))
prompts, keys = jax.device_put((prompts, keys), split)
params["tokens_per_step"] = jax.device_put(params["tokens_per_step"], split)
for slots, groups, same in ((0, 1, 1), (8, 4, 2)):
    settings = RolloutSettings(
        8, 4, record=True, slots=slots, slot_groups=groups, prompt_rows=same
    )
    arguments = (*model, policy, params, prompts, keys, settings)
    out = rollout(*arguments)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_array_equal(out.nfe, expected.nfe)
    assert out.tokens.sharding.is_equivalent_to(split, 2), out.tokens.sharding
    hlo = rollout.lower(*arguments).compile().as_text()
    moved = re.findall(r"(all-gather|all-to-all|collective-permute|reduce-scatter)", hlo)
    assert not moved, (slots, sorted(set(moved)))
print("done")
"""


@pytest.mark.thorough
def test_on_a_mesh_rows_stay_on_their_devices():
    assert run_on_devices(4, ON_A_MESH).strip() == "done"
