"""DiffusionGemma: recorded logits and texts, files, and rows that mind their own business."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import same
from safetensors.numpy import load_file, save_file

from jax_unmask import denoisers, policies
from jax_unmask.denoisers import diffusion_gemma
from jax_unmask.denoisers.diffusion_gemma.model import empty_cache
from jax_unmask.policies.base import Observation
from jax_unmask.rollout import Prompts, canvases, row_keys
from jax_unmask.rollout.canvases import CanvasSettings

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "diffusion_gemma"
POLICY = policies.EntropyBounded()


@pytest.fixture(scope="module")
def checkpoint():
    return diffusion_gemma.load(FIXTURE)


@pytest.fixture(scope="module")
def record():
    return load_file(FIXTURE / "cases.safetensors")


@pytest.fixture(scope="module")
def cases():
    meta = json.loads((FIXTURE / "meta.json").read_text())
    return {case["name"]: case for case in meta["cases"]}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@functools.partial(jax.jit, static_argnames=("model", "parts"))
def passes(model, params, tokens, canvas, logits=None, parts=()):
    """Encodes a prompt (in parts that begin at the given places), then decodes a canvas."""
    variables = {"params": params}
    real = jnp.ones(tokens.shape, bool)
    cache = empty_cache(model.config, *tokens.shape)
    hidden = []
    for start, end in zip((0, *parts), (*parts, tokens.shape[1]), strict=True):
        some = tokens[:, start:end]
        states, cache = model.apply(variables, some, cache, start, real, method="encode")
        hidden.append(states)
    inputs = (canvas, cache, tokens.shape[1], real)
    soft = None
    if logits is not None:
        soft = model.apply(variables, logits, method="soft_embeddings")
    decoded = model.apply(variables, *inputs, soft, method="decode")
    return jnp.concatenate(hidden, 1), model.apply(variables, decoded, method="logits")


class TestLogits:
    @pytest.mark.parametrize("case", ["fwd0", "fwd1"])
    @pytest.mark.default_cases("fwd0")
    def test_encoder_and_decoder(self, checkpoint, record, case):
        """The second prompt is longer than the sliding window."""
        model, params = checkpoint.model, checkpoint.params
        inputs = record[f"{case}.input_ids"], record[f"{case}.canvas_ids"]
        # The longer one in two parts.
        hidden, logits = passes(model, params, *inputs, parts=(6,) if case == "fwd1" else ())
        close(hidden, record[f"{case}.encoder_last_hidden"])
        close(logits, record[f"{case}.logits"])
        given = record[f"{case}.self_conditioning_logits"]
        _, logits = passes(model, params, *inputs, given)
        close(logits, record[f"{case}.logits_selfcond"])

    @pytest.mark.thorough
    def test_bfloat16_computes_close_to_float32(self, checkpoint, record):
        model = checkpoint.model
        narrow = type(model)(dataclasses.replace(model.config, dtype=jnp.bfloat16))
        inputs = record["fwd0.input_ids"], record["fwd0.canvas_ids"]
        logits = jax.jit(narrow.apply)({"params": checkpoint.params}, *inputs)
        assert logits.dtype == jnp.float32
        error = np.abs(logits - record["fwd0.logits"])
        assert 1e-4 < np.median(error) < 0.05 * np.abs(record["fwd0.logits"]).max()


@pytest.mark.parametrize("index", range(3))
def test_the_acceptance_rule_is_the_entropy_bounded_policy(record, cases, index):
    logits = record["accept.logits"]
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    everywhere = jnp.ones(logits.shape[:2], bool)
    zeros = jnp.zeros(2, jnp.int32)
    obs = Observation(
        candidate=jnp.asarray(record["accept.denoiser"]),
        confidence=jnp.ones(logits.shape[:2]),
        top_probs=jnp.ones((*logits.shape[:2], 1)),
        masked=everywhere,
        legal=everywhere,
        step=zeros,
        step_in_block=zeros,
        block_start=zeros,
        entropy=jnp.asarray(-(np.exp(log_probs) * log_probs).sum(-1)),
    )
    params = POLICY.params(gamma=cases[f"accept{index}"]["entropy_bound"])
    fill = POLICY(params, obs, None).fill
    np.testing.assert_array_equal(fill, record[f"accept{index}.accepted_mask"] == 1)
    canvas = np.where(fill, record["accept.denoiser"], record["accept.current"])
    np.testing.assert_array_equal(canvas, record[f"accept{index}.canvas"])


@pytest.fixture
def recorded_draws(monkeypatch, record):
    """The record's random canvases in the order of their use, and the best token for each draw."""
    random = jnp.asarray(record["gen.random_canvases"])
    monkeypatch.setattr(
        canvases, "random_canvas", lambda keys, count, *_: random[count, jnp.arange(len(count))]
    )
    monkeypatch.setattr(
        canvases, "draw_tokens", lambda keys, logits: logits.argmax(axis=-1).astype(jnp.int32)
    )
    # Three of a canvas's eight positions at a time.
    monkeypatch.setattr(canvases, "_LOGITS_AT_ONCE", 3 * 192)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.thorough
def test_recorded_text(checkpoint, record, cases, recorded_draws):
    case, prompt = cases["gen"], record["gen.prompt"]
    settings = CanvasSettings(
        canvases=2,
        steps=case["max_denoising_steps"],
        t_min=case["t_min"],
        t_max=case["t_max"],
        stability=case["stability_threshold"],
        confidence=case["confidence_threshold"],
    )
    inputs = (
        checkpoint.model,
        checkpoint.params,
        POLICY,
        POLICY.params(gamma=case["entropy_bound"]),
        Prompts(prompt, np.ones(prompt.shape, bool)),
        row_keys(jax.random.key(0), 1),
        settings,
    )
    out = canvases.generate(*inputs)
    # Logits of a whole canvas never exist.
    program = canvases.generate.lower(*inputs).as_text()
    assert "1x3x192xf32" in program
    assert "8x192xf32" not in program
    np.testing.assert_array_equal(out.tokens, record["gen.sequences"][:, prompt.shape[1] :])
    assert out.nfe == out.forwards == case["decoder_forwards"]
    # Tokens settle within the forwards of their canvas.
    first, second = out.step_map[0, :8], out.step_map[0, 8:]
    assert first.min() >= 0
    assert first.max() < second[second >= 0].min()
    assert ((out.confidence > 0) == (out.step_map >= 0)).all()


@pytest.mark.thorough
class TestRows:
    SETTINGS = CanvasSettings(canvases=2, steps=3, confidence=2.0)

    def run(self, checkpoint, prompts, keys, watch=None):
        return canvases.generate(
            checkpoint.model,
            checkpoint.params,
            POLICY,
            POLICY.params(gamma=1.0),
            prompts,
            keys,
            self.SETTINGS,
            watch,
        )

    def test_do_not_depend_on_the_rows_beside_them_or_on_padding(self, checkpoint):
        random = np.random.default_rng(0)
        lengths = np.array([9, 4, 7])
        mask = np.arange(9) >= 9 - lengths[:, None]
        tokens = np.where(mask, random.integers(3, 180, (3, 9)), 0).astype(np.int32)
        keys = row_keys(jax.random.key(5), 3)
        seen = []

        def watch(tokens, step_map):
            seen.append((np.array(tokens), np.array(step_map)))

        together = self.run(checkpoint, Prompts(tokens, mask), keys, watch)
        jax.effects_barrier()
        assert len(seen) == together.forwards
        filled = together.step_map >= 0
        np.testing.assert_array_equal(seen[-1][0][filled], together.tokens[filled])
        np.testing.assert_array_equal(seen[-1][1][filled], together.step_map[filled])
        assert (together.nfe <= 6).all()
        assert len(set(together.tokens.ravel().tolist())) > 3
        order = np.array([2, 0, 1])
        mixed = self.run(checkpoint, Prompts(tokens[order], mask[order]), keys[order], watch)
        np.testing.assert_array_equal(mixed.tokens, together.tokens[order])
        np.testing.assert_array_equal(mixed.nfe, together.nfe[order])
        alone = self.run(checkpoint, Prompts(tokens[1:2, 5:], mask[1:2, 5:]), keys[1:2])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[1])

    def test_nothing_follows_the_end_and_absent_rows_cost_nothing(self, checkpoint, record):
        """Every token ends the text: one canvas, and all behind its first token is padding."""
        config = checkpoint.model.config
        ends = dataclasses.replace(config, eos_token_ids=tuple(range(config.vocab_size)))
        changed = dataclasses.replace(checkpoint, model=type(checkpoint.model)(ends))
        prompt = np.repeat(record["gen.prompt"], 2, axis=0)
        prompts = Prompts(prompt, np.ones(prompt.shape, bool), present=np.array([True, False]))
        out = self.run(changed, prompts, row_keys(jax.random.key(0), 2))
        assert (out.tokens[0, 1:] == config.pad_token_id).all()
        assert (out.tokens[1] == config.pad_token_id).all()
        assert (out.step_map[0, 1:] == -1).all()
        assert out.nfe[1] == 0
        assert out.nfe[0] == out.forwards <= 3


class TestFiles:
    @pytest.mark.parametrize(("dtype", "limit"), [("float32", 50_000), ("bfloat16", 10**9)])
    def test_round_trip_is_bit_exact(self, tmp_path, dtype, limit):
        tensors = {
            key: value.astype(dtype) if value.dtype == np.float32 else value
            for key, value in load_file(FIXTURE / "model.safetensors").items()
        }
        shutil.copy(FIXTURE / "config.json", tmp_path)
        save_file(tensors, tmp_path / "model.safetensors")
        loaded = diffusion_gemma.load(tmp_path)
        assert loaded.params["embedding"].dtype == dtype
        diffusion_gemma.save(tmp_path / "written", loaded, max_shard_bytes=limit)
        same.tensors(tmp_path / "written", tensors)
        assert diffusion_gemma.load(tmp_path / "written").model == loaded.model

    def test_orbax(self, checkpoint, tmp_path):
        diffusion_gemma.save_orbax(tmp_path, checkpoint)
        again = diffusion_gemma.load(tmp_path)
        assert again.model == checkpoint.model
        assert again.fields == checkpoint.fields
        same.trees(again.params, checkpoint.params)
        same.trees(dict(again.carried), dict(checkpoint.carried))
        with pytest.raises(FileExistsError):
            diffusion_gemma.save_orbax(tmp_path, checkpoint)

    def copy(self, tmp_path, **changes):
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(FIXTURE / name, tmp_path / name)
        fields = json.loads((FIXTURE / "config.json").read_text())
        fields["text_config"] |= changes
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return tmp_path

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"attention_bias": True}, "attention_bias=True"),
            ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention='all'"),
            ({"layer_types": ["full_attention"]}, "must name sliding_attention or"),
            ({"top_k_experts": 5}, "per_token=5 exceeds num_experts=4"),
            ({"num_experts": None}, "num_experts is missing"),
            ({"per_layer_config": {"2": {"sliding_window": 9}}}, "per_layer_config=.* of layer 2"),
            ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters=.* for sliding_attention"),
            ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
            ({"rope_parameters": 5}, r"config\.json .*'int'"),
            ({"num_attention_heads": 0}, "num_heads=0 "),
            ({"final_logit_softcapping": 0.0}, r"config\.json: softcap=0.0 must be"),
            ({"eos_token_id": []}, "eos_token_id is empty"),
        ],
    )
    def test_switches(self, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            diffusion_gemma.load(self.copy(tmp_path, **changes))

    def test_each_loader_names_the_other(self):
        with pytest.raises(ValueError, match=r"denoisers\.from_pretrained"):
            diffusion_gemma.load(FIXTURE.parent / "llada")
        with pytest.raises(
            ValueError, match=r"'diffusion_gemma'.* denoisers\.diffusion_gemma\.load"
        ):
            denoisers.from_pretrained(FIXTURE)

    def test_published_config_form(self, tmp_path):
        """Sizes of the full-attention layers in the two fields of the published files."""
        fields = json.loads((FIXTURE / "config.json").read_text())
        text = fields["text_config"]
        del text["per_layer_config"]
        text |= {"global_head_dim": 16, "num_global_key_value_heads": 1, "rope_parameters": None}
        again = diffusion_gemma.config.config_from_hf(fields)
        assert again == diffusion_gemma.load(FIXTURE).model.config
