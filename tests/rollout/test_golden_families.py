"""Decodings of the samplers that Dream and SDAR publish, token by token (without caches)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_unmask import denoisers, policies
from jax_unmask.policies.base import Action, Needs, Observation
from jax_unmask.rollout import Cache, Prompts, RolloutSettings, rollout, row_keys


def decode(model, arrays, name, policy, params, **settings):
    prompt = arrays[f"{name}.prompt"]
    mask = arrays.get(f"{name}.attention_mask", np.ones_like(prompt)).astype(bool)
    keys = row_keys(jax.random.key(0), prompt.shape[0])
    settings = RolloutSettings(**settings)
    return rollout(*model, policy, params, Prompts(prompt, mask), keys, settings)


@pytest.fixture
def dream(models):
    return models["dream"]


@pytest.fixture(scope="module")
def llada2(fixtures_dir):
    folder = fixtures_dir / "llada2_moe"
    meta = json.loads((folder / "meta.json").read_text())
    model = denoisers.from_pretrained(folder, mask_token_id=meta["mask_id"])
    cases = {case["name"]: case for case in meta["cases"]}
    return model, load_file(folder / "cases.safetensors"), cases


@pytest.fixture(scope="module")
def tables(fixtures_dir):
    folder = fixtures_dir / "jetengine"
    meta = json.loads((folder / "meta.json").read_text())
    return load_file(folder / "cases.safetensors"), meta["cases"]


class TestDream:
    def check(self, dream, recorded, name, policy, params):
        arrays, cases = recorded
        case, width = cases[name], arrays[f"{name}.prompt"].shape[1]
        length = case["gen_length"]
        out = decode(dream, arrays, name, policy, params, gen_length=length, block_length=length)
        np.testing.assert_array_equal(out.tokens, arrays[f"{name}.sequences"][:, width:])
        np.testing.assert_array_equal(out.step_map, arrays[f"{name}.step_map"][:, width:])
        assert (out.nfe == case["nfe"]).all()

    @pytest.mark.parametrize(
        ("name", "algorithm"),
        [
            ("dream_maskgit_plus", policies.MaskgitPlus()),
            ("dream_topk_margin", policies.TopkMargin()),
            ("dream_entropy_leftpad", policies.Entropy()),
            ("dream_entropy", policies.Entropy(reference_compat=True)),
        ],
    )
    @pytest.mark.default_cases("dream_maskgit_plus-algorithm0", "dream_entropy_leftpad-algorithm2")
    def test_diffusion_generate(self, dream, recorded, name, algorithm):
        params = algorithm.params(steps=recorded[1][name]["steps"])
        self.check(dream, recorded, name, algorithm, params)

    def test_no_step_is_wasted_by_default(self, dream, recorded):
        """The record's first step fills nothing, so its second one sees the same canvas."""
        arrays, cases = recorded
        case, policy = cases["dream_entropy"], policies.Entropy()
        assert case["unmasked_per_step"][0][0] == 0
        out = decode(
            dream,
            arrays,
            "dream_entropy",
            policy,
            policy.params(steps=case["steps"]),
            gen_length=case["gen_length"],
            block_length=case["gen_length"],
        )
        width = arrays["dream_entropy.prompt"].shape[1]
        np.testing.assert_array_equal(out.tokens, arrays["dream_entropy.sequences"][:, width:])
        assert sorted(out.step_map[0].tolist()) == list(range(20))

    def test_origin(self, dream, recorded):
        arrays, cases = recorded
        case = cases["dream_origin"]
        policy = policies.Origin(reference_compat=True)
        params = {"own": policy.params(steps=case["steps"])}
        params["draws"] = jnp.asarray(np.nan_to_num(arrays["dream_origin.rand"]))
        self.check(dream, recorded, "dream_origin", GivenDraws(policy), params)

    def test_fast_dllm_threshold(self, dream, recorded):
        case, policy = recorded[1]["fastdream_threshold_none"], policies.DreamThreshold()
        params = policy.params(threshold=case["threshold"], steps=case["steps"])
        self.check(dream, recorded, "fastdream_threshold_none", policy, params)


@dataclasses.dataclass(frozen=True)
class GivenDraws:
    """`Origin` with recorded draws [T, 1, L]: the j-th is the j-th masked position's."""

    policy: policies.Origin

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def __call__(self, params, obs, keys):
        draws = params["draws"]
        draws = draws.reshape(draws.shape[0], -1)[obs.step]
        place = jnp.cumsum(obs.legal, axis=-1) - 1
        uniform = jnp.take_along_axis(draws, jnp.maximum(place, 0), axis=-1)
        fill = self.policy.fill_below(params["own"], uniform, obs)
        return Action(fill=fill, log_prob=jnp.zeros(fill.shape[0]))


@pytest.mark.thorough
def test_rows_with_other_prompts_get_the_same(models, recorded):
    """Prompts of 11 and 8 tokens in one batch: their blocks begin at different places."""
    names = ("sdar_static_b8_partial", "sdar_dynamic_b8")
    prompts = [recorded[0][f"{name}.prompt"][0] for name in names]
    tokens, mask = np.zeros((2, 13), np.int32), np.zeros((2, 13), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, -len(prompt) :], mask[row, -len(prompt) :] = prompt, True
    policy = policies.Dynamic()
    settings = RolloutSettings(gen_length=16, block_length=8, record=True)

    def decode(prompts):
        keys = row_keys(jax.random.key(0), len(prompts.tokens))
        return rollout(
            *models["sdar"], policy, policy.params(threshold=0.45), prompts, keys, settings
        )

    both = decode(Prompts(tokens, mask))
    for row, prompt in enumerate(prompts):
        alone = decode(Prompts(prompt[None], np.ones((1, len(prompt)), bool)))
        np.testing.assert_array_equal(both.tokens[row], alone.tokens[0])
        np.testing.assert_array_equal(both.step_map[row], alone.step_map[0])
    # The first block of the first row is what 11 tokens leave of two blocks of 8.
    assert set(both.records.obs.block_start[: both.nfe[0], 0].tolist()) == {0, 5, 13}
    assert set(both.records.obs.block_start[: both.nfe[1], 1].tolist()) == {0, 8}


class TestJetEngine:
    """TraDo's rollout engine on tables of logits: its unmasking rule, run by run."""

    @pytest.mark.parametrize("index", range(4))
    def test_rule(self, tables, index):
        arrays, cases = tables
        case = cases[index]
        name, block, mask_id = case["name"], case["block_length"], case["mask_id"]
        steps = case["denoising_steps"]
        policy, params = {
            "low_confidence_static": lambda: with_params(policies.TopConfidence(), steps=steps),
            "low_confidence_dynamic": lambda: with_params(
                policies.Dynamic(), threshold=case["threshold"], steps=steps
            ),
            "sequential": lambda: with_params(policies.LeftToRight(), steps=steps),
        }[case["strategy"]]()
        before, logits = arrays[f"{name}.block_before"], arrays[f"{name}.logits"]
        text = np.concatenate([arrays[f"{name}.prompt"], arrays[f"{name}.completion"]])
        first_block = len(arrays[f"{name}.prompt"]) // block
        start, found = len(arrays[f"{name}.prompt"]), np.zeros(len(text), np.int32)
        step, blocks = 0, first_block
        for run in range(len(before)):
            if run and (before[run - 1] == mask_id).sum() <= (before[run] == mask_id).sum():
                step, blocks = 0, blocks + 1
            masked = before[run] == mask_id
            probs = np.asarray(jax.nn.softmax(logits[run]))
            obs = Observation(
                candidate=jnp.asarray(probs.argmax(-1))[None],
                confidence=jnp.asarray(probs.max(-1))[None],
                top_probs=jnp.asarray(probs.max(-1))[None, :, None],
                masked=jnp.asarray(masked)[None],
                legal=jnp.asarray(masked)[None],
                step=jnp.array([step]),
                step_in_block=jnp.array([step]),
                block_start=jnp.array([0]),
                block_length=block,
            )
            action = policy(params, obs, row_keys(jax.random.key(0), 1))
            assert isinstance(action, Action)
            after = np.where(action.fill[0], probs.argmax(-1), before[run])
            filled = blocks * block + np.flatnonzero(action.fill[0] & masked)
            found[filled[filled < len(text)]] = run + 1
            is_done = run + 1 == len(before) or not (after == mask_id).any()
            if is_done:
                expected = text[blocks * block : (blocks + 1) * block]
                after = after[: len(expected)]
            else:
                expected = before[run + 1]
            np.testing.assert_array_equal(after, expected, err_msg=f"{name}, run {run}")
            step += 1
        np.testing.assert_array_equal(found[start:], arrays[f"{name}.first_unmask_steps"])


def with_params(policy, **settings):
    return policy, policy.params(**settings)


class TestLLaDA2:
    """LLaDA2.0's threshold with a quota, and LLaDA2.1's editing."""

    def check(self, llada2, name, policy, params, cache=None):
        """Blocks behind the record's last one are rolled out, too; they count for nothing."""
        model, arrays, cases = llada2
        case, prompt = cases[name], arrays[f"{name}.prompt"]
        block = case["block_length"]
        wanted = -(-(prompt.shape[1] + case["gen_length"]) // block) * block - prompt.shape[1]
        out = decode(
            model,
            arrays,
            name,
            policy,
            params,
            gen_length=-(-wanted // block) * block,
            block_length=block,
            record=True,
            stop_ids=(case["eos_id"],),
            cache=cache,
        )
        expected = arrays[f"{name}.generated"]
        np.testing.assert_array_equal(out.tokens[:, : expected.shape[1]], expected)
        records = out.records
        counted = records.active[:, 0] & (records.obs.block_start[:, 0] < wanted)
        assert counted.sum() == case["nfe"]
        return out, counted

    @pytest.mark.thorough
    def test_threshold_with_a_quota(self, llada2):
        case, policy = llada2[2]["gen_llada2_t"], policies.Dynamic()
        params = policy.params(threshold=case["threshold"], steps=case["steps"])
        self.check(llada2, "gen_llada2_t", policy, params)

    @pytest.mark.parametrize(
        ("name", "cache"),
        [("gen_llada21_t", None), ("gen_llada21_edit", None), ("gen_llada21_edit", Cache("block"))],
    )
    @pytest.mark.default_cases("gen_llada21_edit-cache2")
    def test_editing(self, llada2, name, cache):
        case = llada2[2][name]
        policy = policies.DynamicEdit(max_post_steps=case["max_post_steps"])
        params = policy.params(
            threshold=case["threshold"],
            tokens_per_step=case["num_to_transfer"],
            editing_threshold=case["editing_threshold"],
        )
        out, counted = self.check(llada2, name, policy, params, cache)
        on_full_blocks = counted & ~np.asarray(out.records.obs.legal[:, 0]).any(axis=-1)
        assert on_full_blocks.sum() > 0
        # Positions that were no mask any more when they were last written.
        masked, last = np.asarray(out.records.obs.masked[:, 0]), np.asarray(out.step_map[0])
        edited = ~masked[last, np.arange(len(last))] & (last >= 0)
        assert edited.any() == (name == "gen_llada21_edit")
