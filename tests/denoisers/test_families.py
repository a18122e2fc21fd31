"""All families: recorded logits, exact round trips, published shapes."""

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

from jax_unmask import denoisers
from jax_unmask.denoisers import families
from jax_unmask.denoisers.pretrained import read_config

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
# The mask tokens that these config.json files do not name.
MASKS = {"llada_moe": 314, "llada2_moe": 316}
MODELS = ("llada", "dream", "sdar", "sdar_tied", "llada_moe", "llada2_moe")


@functools.cache
def load(name):
    return denoisers.from_pretrained(FIXTURES / name, mask_token_id=MASKS.get(name))


@functools.cache
def golden(name):
    return load_file(FIXTURES / name / "cases.safetensors")


@functools.partial(jax.jit, static_argnames=("denoiser", "method", "last"))
def run(denoiser, params, *args, method=None, **more):
    return denoiser.apply({"params": params}, *args, method=method, **more)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


class TestDreamLogits:
    """Ours at i score token i; the records hold the raw outputs, too, which score token i + 1."""

    @pytest.mark.parametrize("case", ["plain0", "plain1"])
    def test_plain(self, case):
        logits = run(*load("dream"), golden("dream")[f"{case}.input_ids"])
        raw = golden("dream")[f"{case}.logits"]
        close(logits[:, 1:], raw[:, :-1])
        close(logits[:, 0], raw[:, 0])
        if f"{case}.logits_shifted" in golden("dream"):
            close(logits, golden("dream")[f"{case}.logits_shifted"])

    @pytest.mark.parametrize("case", ["leftpad", "rightpad"])
    def test_padded(self, case):
        record = golden("dream")
        tokens, real = record[f"{case}.input_ids"], record[f"{case}.attention_mask"] == 1
        assert not real.all()
        logits = np.asarray(run(*load("dream"), tokens, real))
        raw = record[f"{case}.logits"]
        both = real[:, 1:] & real[:, :-1]
        close(logits[:, 1:][both], raw[:, :-1][both])
        # A text's first token keeps its own row, wherever padding puts it.
        first = real & (np.cumsum(real, axis=1) == 1)
        close(logits[first], raw[first])

    def test_positions_that_count_padding(self):
        record = golden("dream")
        tokens, real = record["leftpad.input_ids"], record["leftpad.attention_mask"] == 1
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        logits = np.asarray(run(*load("dream"), tokens, real, positions))
        both = real[:, 1:] & real[:, :-1]
        close(logits[:, 1:][both], record["leftpad.logits_arange_positions"][:, :-1][both])

    def test_hidden_states_are_shifted_too(self):
        hidden = run(*load("dream"), golden("dream")["plain0.input_ids"], method="hidden")
        close(hidden[:, 1:], golden("dream")["plain0.hidden2"][:, :-1])


BLOCK_CAUSAL = [
    *((name, "bc0_len16_b4", 4) for name in ("sdar", "sdar_tied", "llada2_moe")),
    ("sdar", "bc1_len22_b4", 4),
    ("sdar", "bc2_len24_b8", 8),
    ("llada2_moe", "bc1_len27_b8", 8),
]


class TestBlockCausalLogits:
    def with_block(self, name, block):
        denoiser, params = load(name)
        config = dataclasses.replace(denoiser.config, attention_block=block)
        return denoisers.Denoiser(config), params

    @pytest.mark.parametrize(("name", "case", "block"), BLOCK_CAUSAL)
    def test_whole_sequence(self, name, case, block):
        logits = run(*self.with_block(name, block), golden(name)[f"{case}.input_ids"])
        close(logits, golden(name)[f"{case}.logits"])

    @pytest.mark.parametrize("name", ["sdar", "llada2_moe"])
    def test_left_padding_moves_no_block(self, name):
        denoiser, params = self.with_block(name, 4)
        tokens = golden(name)["bc0_len16_b4.input_ids"]
        pads = np.array([3, 6])
        width = tokens.shape[1] + 6
        padded = np.zeros((2, width), np.int32)
        real = np.arange(width) >= width - tokens.shape[1]
        real = np.stack([np.roll(real, -(6 - pad)) for pad in pads])
        for row in range(2):
            padded[row, pads[row] : pads[row] + tokens.shape[1]] = tokens[row]
        logits = np.asarray(run(denoiser, params, padded, real))
        expected = golden(name)["bc0_len16_b4.logits"]
        for row in range(2):
            close(logits[row, real[row]], expected[row])


@pytest.mark.parametrize("case", ["plain0", "plain1"])
def test_llada_moe_logits(case):
    logits = run(*load("llada_moe"), golden("llada_moe")[f"{case}.input_ids"])
    close(logits, golden("llada_moe")[f"{case}.logits"])


TOKENS = np.arange(36, dtype=np.int32).reshape(3, 12) * 7 % 300


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.default_cases("llada", "llada2_moe")
def test_some_positions_are_those_of_the_whole(name):
    """The last ones of each row, or a window that begins elsewhere in each row."""
    denoiser, params = load(name)
    hidden = functools.partial(run, denoiser, params, TOKENS, method="hidden")
    # The last row has no text before its last four tokens, as with an empty prompt.
    real = np.arange(12) >= np.array([[0], [3], [8]])
    starts = np.array([0, 5, 9], np.int32)
    whole = np.asarray(hidden(real))
    cases = [(4, None), (3, starts)]
    if name in ("llada", "dream"):  # The edges, without and with states that move by one.
        cases += [(11, None), (12, starts * 0)]
    for width, start in cases:
        more = {} if start is None else {"start": start}
        some = hidden(real, last=width, **more)
        columns = (np.full(3, 12 - width) if start is None else start)[:, None] + np.arange(width)
        shown = np.take_along_axis(real, columns, axis=1)
        expected = np.take_along_axis(whole, columns[..., None], axis=1)
        np.testing.assert_allclose(some[shown], expected[shown], rtol=0, atol=1e-5)


def test_some_positions_without_padding():
    denoiser, params = load("dream")
    some = run(denoiser, params, TOKENS, method="hidden", last=4)
    whole = run(denoiser, params, TOKENS, method="hidden")
    np.testing.assert_allclose(some, whole[:, -4:], rtol=0, atol=1e-5)


class TestRoundTrips:
    @pytest.mark.parametrize("name", MODELS)
    def test_hugging_face_is_bit_exact(self, name, tmp_path):
        denoiser, params = load(name)
        for directory, limit in (("whole", 10**9), ("shards", 150_000)):
            target = tmp_path / directory
            denoisers.save_pretrained(target, denoiser, params, max_shard_bytes=limit)
            same.tensors(target, load_file(FIXTURES / name / "model.safetensors"))
            again, loaded = denoisers.from_pretrained(target)
            assert again == denoiser
            same.trees(loaded, params)

    @pytest.mark.parametrize("name", ["sdar_tied", "llada2_moe"])
    def test_bfloat16(self, name, tmp_path):
        original = {
            key: value.astype(jnp.bfloat16)
            for key, value in load_file(FIXTURES / name / "model.safetensors").items()
        }
        # As published: everything in bfloat16, but for the buffer of LLaDA2's router.
        for key, value in original.items():
            if key.endswith("expert_bias"):
                original[key] = value.astype(np.float32) + np.float32(1e-6)
        source = tmp_path / "source"
        source.mkdir()
        shutil.copyfile(FIXTURES / name / "config.json", source / "config.json")
        save_file(original, source / "model.safetensors")
        denoiser, params = denoisers.from_pretrained(source, mask_token_id=MASKS.get(name))
        assert denoiser.config.param_dtype == denoiser.config.dtype == jnp.bfloat16
        denoisers.save_pretrained(tmp_path / "hf", denoiser, params)
        same.tensors(tmp_path / "hf", original)
        denoisers.save_orbax(tmp_path / "orbax", denoiser, params)
        again, loaded = denoisers.from_pretrained(tmp_path / "orbax")
        assert again == denoiser
        same.trees(loaded, params)

    @pytest.mark.parametrize("name", ["sdar", "llada2_moe"])
    def test_bfloat16_computes_close_to_float32(self, name):
        denoiser, params = load(name)
        narrow = denoisers.Denoiser(dataclasses.replace(denoiser.config, dtype=jnp.bfloat16))
        real = np.ones(TOKENS.shape, bool)
        wide = run(denoiser, params, TOKENS, real)
        logits = run(narrow, params, TOKENS, real)
        assert logits.dtype == jnp.float32
        spread = np.abs(np.asarray(wide)).max()
        assert 1e-4 < np.median(np.abs(logits - wide)) < 0.02 * spread


class TestWrongFamily:
    def written(self, tmp_path, weights, config, **changes):
        shutil.copyfile(FIXTURES / weights / "model.safetensors", tmp_path / "model.safetensors")
        fields = json.loads((FIXTURES / config / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return tmp_path

    def test_weights(self, tmp_path):
        with pytest.raises(ValueError, match="config: missing "):
            denoisers.from_pretrained(self.written(tmp_path, "sdar", "dream"))

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("dream", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
            ("dream", {"rope_scaling": {"factor": 4}}, "rope_scaling={'factor': 4} is not"),
            ("dream", {"rope_theta": None}, "rope_theta is missing.* dream"),
            ("sdar", {"use_sliding_window": True}, "use_sliding_window=True"),
            ("sdar", {"block_size": 0}, "attention_block=0 "),
            ("llada_moe", {"clip_qkv": 8}, "clip_qkv=8 .* llada_moe"),
            ("llada_moe", {"moe_layer_freq": [1]}, r"moe_layer_freq=\[1\] must list"),
            ("llada2_moe", {"use_bias": True}, "use_bias=True .* llada2_moe"),
            ("llada2_moe", {"topk_group": 9}, "groups_kept=9"),
        ],
    )
    def test_switches(self, tmp_path, name, change, message):
        directory = self.written(tmp_path, name, name, **change)
        with pytest.raises(ValueError, match=message):
            read_config(directory, mask_token_id=MASKS.get(name))


class TestFamilies:
    @pytest.mark.parametrize(
        ("fields", "name"),
        [
            ({"model_type": "llada", "architectures": ["LLaDAModelLM"]}, "llada"),
            ({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]}, "llada_moe"),
            ({"model_type": "llada"}, "llada"),
            ({"model_type": "lladamoe"}, "llada_moe"),
            ({"model_type": "Dream"}, "dream"),
            ({"model_type": "sdar"}, "sdar"),
            ({"model_type": "sdar_moe"}, "sdar_moe"),
            ({"model_type": "llada2_moe"}, "llada2_moe"),
        ],
    )
    def test_are_told_apart(self, fields, name):
        assert families.of(fields).name == name

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"gpt2(.|\n)*llada"):
            families.named("gpt2")


# Hub names of models whose size is published, and that size.
PUBLISHED = {
    "GSAI-ML/LLaDA-8B-Instruct": 8_015_581_184,
    "Dream-org/Dream-v0-Instruct-7B": 7_615_616_512,
    "JetLM/SDAR-8B-Chat": 8_190_735_360,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_ahead_of_time(name):
    """Counted and traced from shapes alone: nothing is allocated."""
    config = dataclasses.replace(
        families.published_config(name), dtype="bfloat16", param_dtype="bfloat16"
    )
    params = denoisers.abstract_params(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert denoisers.count_params(config) == PUBLISHED[name]
    tokens = jax.ShapeDtypeStruct((1, 48), jnp.int32)
    out = jax.eval_shape(denoisers.Denoiser(config).apply, {"params": params}, tokens)
    assert (out.shape, out.dtype) == ((1, 48, config.vocab_size), jnp.float32)


@pytest.mark.parametrize(("name", "billions"), [("LLaDA2.0-mini", 16), ("LLaDA2.0-flash", 100)])
def test_published_mixtures_of_experts(name, billions):
    count = denoisers.count_params(families.published_config(f"inclusionAI/{name}"))
    assert count / 1e9 == pytest.approx(billions, rel=0.05)
