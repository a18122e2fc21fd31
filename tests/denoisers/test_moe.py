"""The mixture of experts: recorded routing, and the layer against a loop over its experts."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import same
from safetensors.numpy import load_file

import tiny
from jax_unmask import denoisers
from jax_unmask.denoisers.config import ExpertsConfig
from jax_unmask.denoisers.moe import Experts, route

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
MOE = ExpertsConfig(num_experts=6, per_token=2, size=5, layers=(True,))
VARIANTS = {
    "llada_moe": {},
    "llada_moe_biased": {"has_bias": True, "weigh_biased": True},
    "sdar_moe": {"normalise": True},
    "llada2": {
        "score": "sigmoid",
        "has_bias": True,
        "normalise": True,
        "scale": 2.5,
        "num_groups": 3,
        "groups_kept": 2,
        "router_in_float32": True,
    },
}


def config(**experts):
    return tiny.denoiser_config(
        family="llada2_moe",
        hidden_size=8,
        num_kv_heads=1,
        head_dim=4,
        intermediate_size=8,
        norm_eps=1e-6,
        experts=dataclasses.replace(MOE, **experts),
    )


def published_choice(scores, bias, moe):
    """Experts and weights of one token, step by step as the published routers take them."""
    biased = scores + bias
    allowed = np.arange(moe.num_experts)
    if moe.num_groups > 1:
        groups = biased.reshape(moe.num_groups, -1)
        value = np.sort(groups, axis=1)[:, -2:].sum(axis=1)
        kept = np.argsort(-value)[: moe.groups_kept]
        allowed = np.concatenate([allowed.reshape(moe.num_groups, -1)[g] for g in kept])
    chosen = allowed[np.argsort(-biased[allowed])][: moe.per_token]
    weights = (biased if moe.weigh_biased else scores)[chosen]
    if moe.normalise:
        weights = weights / (weights.sum() + 1e-20)
    return chosen, weights * moe.scale


@pytest.mark.parametrize("name", VARIANTS)
class TestExperts:
    @pytest.fixture
    def layer(self, name):
        cfg = config(**VARIANTS[name])
        x = jax.random.normal(jax.random.key(1), (11, 8))
        params = Experts(cfg).init(jax.random.key(0), x)["params"]
        if "router_bias" in params:
            bias = jax.random.normal(jax.random.key(2), params["router_bias"].shape)
            params = {**params, "router_bias": 0.3 * bias}
        return cfg, params, x

    def test_is_the_sum_over_the_chosen(self, layer):
        cfg, params, x = layer
        apply = jax.jit(Experts(cfg).apply)
        out = apply({"params": params}, x)
        # Tokens do not meet.
        other = apply({"params": params}, jnp.where(jnp.arange(11)[:, None] == 5, x, -x))
        np.testing.assert_allclose(other[5], out[5], rtol=0, atol=1e-6)
        tensors = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        logits = np.asarray(x, np.float64) @ tensors["router"]
        if cfg.experts.score == "softmax":
            scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        else:
            scores = 1 / (1 + np.exp(-logits))
        bias = tensors.get("router_bias", np.zeros(6))
        for row, token in enumerate(np.asarray(x, np.float64)):
            chosen, weights = published_choice(scores[row], bias, cfg.experts)
            expected = 0
            for expert, weight in zip(chosen, weights, strict=True):
                gate = token @ tensors["gate"][expert]
                up = token @ tensors["up"][expert]
                hidden = gate / (1 + np.exp(-gate)) * up
                expected = expected + weight * (hidden @ tensors["down"][expert])
            np.testing.assert_allclose(out[row], expected, rtol=0, atol=1e-5)

    def test_gradients_reach_all_but_the_bias(self, layer):
        cfg, params, x = layer
        x = jax.random.normal(jax.random.key(5), (200, 8))
        loss = lambda p: jnp.square(Experts(cfg).apply({"params": p}, x)).sum()
        gradient = jax.jit(jax.grad(loss))(params)
        for key, leaf in gradient.items():
            assert np.isfinite(leaf).all()
            assert bool(jnp.any(leaf)) == (key != "router_bias")


def test_recorded_routing():
    """Layer 1's router of the LLaDA2 record, group-limited and biased."""
    record = load_file(FIXTURES / "llada2_moe" / "cases.safetensors")
    denoiser, params = denoisers.from_pretrained(FIXTURES / "llada2_moe", mask_token_id=316)
    assert [run.name for run in denoiser.config.layer_runs] == ["layers_0", "layers_1"]
    experts = jax.tree.map(lambda leaf: leaf[0], params["layers_1"]["experts"])
    logits = record["gate.hidden"] @ np.asarray(experts["router"])
    np.testing.assert_allclose(logits, record["gate.logits"], rtol=0, atol=1e-4)
    chosen, weights = route(logits, experts["router_bias"], denoiser.config.experts)
    np.testing.assert_array_equal(chosen, record["gate.topk_idx"])
    np.testing.assert_allclose(weights, record["gate.topk_weight"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llada_moe", {"shared_size": 7, "layers": (True, False, True)}),
        ("llada_moe", {"has_bias": True, "weigh_biased": True, "layers": (False, True, True)}),
        ("sdar_moe", {"normalise": True, "layers": (False, True, False)}),
        ("llada2_moe", {**VARIANTS["llada2"], "shared_size": 10, "layers": (False, True, True)}),
    ],
)
def test_variants_survive_the_round_trip(tmp_path, family, more):
    """Configurations that no recorded model has, through files and back."""
    cfg = dataclasses.replace(
        config(),
        family=family,
        num_layers=3,
        experts=dataclasses.replace(MOE, **more),
        qk_norm=True,
        rotary_in_float32=False,
        norm_scale_in_float32=family == "sdar_moe",
        attention_block=None if family == "llada_moe" else 4,
    )
    params = tiny.random_params(cfg)
    denoiser = denoisers.Denoiser(cfg)
    assert set(params) >= {run.name for run in cfg.layer_runs}
    denoisers.save_pretrained(tmp_path, denoiser, params)
    again, loaded = denoisers.from_pretrained(tmp_path)
    assert again == denoiser
    same.trees(loaded, params)
