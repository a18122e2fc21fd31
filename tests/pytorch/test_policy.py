"""The PyTorch module computes what ours does, and serves as an algorithm of SGLang."""

import importlib
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from jax_unmask import policies
from jax_unmask.policies.checkpoint import MadeFor
from jax_unmask.shipped import assets

torch = pytest.importorskip("torch", reason="PyTorch is an extra")
exported = importlib.import_module("jax_unmask.pytorch.policy")

WIDTH, VOCABULARY, MASK = 8, 11, 10
RICH = policies.NetworkConfig(
    hidden_dim=8,
    feedforward_dim=12,
    num_heads=2,
    time_embed_dim=5,
    time_period=7.0,
    alphas=(0.1, 10.0),
    **tiny.RICH_NETWORK | {"rank_attention": (0.5, 2.0)},
)


@pytest.fixture(scope="module")
def logits():
    values = np.random.default_rng(0).normal(size=(3, WIDTH, VOCABULARY)).astype(np.float32)
    values[0, :2, MASK] = 9.0  # The mask token itself is the most probable one.
    return values


def observations(logits, top_k):
    """The same observation for both sides."""
    rows = logits.shape[0]
    masked = np.random.default_rng(1).random((rows, WIDTH)) < 0.7
    step = np.arange(rows)
    probs = np.asarray(jax.nn.softmax(logits, axis=-1))
    allowed = probs.copy()
    allowed[..., MASK] = -1
    candidate = allowed.argmax(-1)
    ours = policies.Observation(
        candidate=jnp.asarray(candidate),
        confidence=jnp.asarray(allowed.max(-1)),
        top_probs=jnp.asarray(-np.sort(-probs, axis=-1)[..., :top_k]),
        entropy=jnp.asarray(-(probs * np.log(probs)).sum(-1)),
        masked=jnp.asarray(masked),
        legal=jnp.asarray(masked),
        step=jnp.asarray(step),
        step_in_block=jnp.asarray(step),
        block_start=jnp.zeros(rows, int),
        block_length=WIDTH,
    )
    there = torch.tensor(masked)
    theirs = exported.observe(
        *(torch.tensor(logits), there, there, torch.tensor(step) / WIDTH), top_k=top_k, mask_id=MASK
    )
    return ours, theirs


def random_policy(directory, network, **settings):
    """Random weights everywhere, also where training starts from zero."""
    policy = policies.LearnedPolicy(network=network, **settings)
    params = policy.init_params(jax.random.key(0), WIDTH)
    leaves, tree = jax.tree.flatten(params["network"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    params = params | {"network": jax.tree.unflatten(tree, noisy), "temperature": jnp.float32(0.7)}
    made = MadeFor("m", "t", WIDTH, WIDTH, "threshold")
    policies.save_policy(directory, policy, params, [made])
    return policy, params


def test_every_observation_gives_our_logits_and_actions(tmp_path, logits):
    policy, params = random_policy(tmp_path, RICH)
    module = exported.UnmaskingPolicy.from_directory(tmp_path)
    ours, theirs = observations(logits, RICH.top_k)
    with torch.no_grad():
        found = module(theirs).numpy()
    np.testing.assert_allclose(found, policy.logits(params, ours), rtol=2e-4, atol=2e-5)
    acts, settings = policies.parse_policy(f"learned:{tmp_path}")
    action = acts(settings, ours, jax.random.split(jax.random.key(0), 3))
    np.testing.assert_array_equal(module.fill(theirs).numpy(), action.fill)


def test_draws_are_legal_and_never_empty(tmp_path, logits):
    random_policy(tmp_path, RICH)
    module = exported.UnmaskingPolicy.from_directory(tmp_path)
    _, theirs = observations(logits, RICH.top_k)
    for distribution in ("bernoulli_argmax", "dpls"):
        module.distribution = distribution
        fill = module.fill(theirs, torch.Generator().manual_seed(0))
        assert not (fill & ~theirs.legal).any()
        assert (fill.any(dim=1) == theirs.legal.any(dim=1)).all()


def test_reads_what_ships_and_the_public_files_and_refuses_the_rest():
    shipped = assets() / "policies" / "sudoku-seed0"
    module = exported.UnmaskingPolicy.from_directory(shipped)
    assert module.made_for["task"] == "sudoku"
    assert module.distribution == "threshold"
    fixtures = pathlib.Path(__file__).parents[1] / "fixtures" / "policy"
    exported.UnmaskingPolicy.from_directory(fixtures / "dit_confidence_topp")
    with pytest.raises(ValueError, match="dit_hidden"):
        exported.UnmaskingPolicy.from_directory(fixtures / "dit_hidden")


class FakeBase:
    """As far as SGLang's own base class is used: `run` forwards, then `step`, until all is done."""

    def __init__(self, config):
        self.block_size, self.mask_id = config.block_size, config.mask_id

    def run(self, forward, batch):
        states = self.init_step_state(batch)
        for forwards in range(1, self.block_size + 2):
            if all(self.step(batch, forward(batch), states)):
                return forwards
        raise AssertionError("the block never ends")


@pytest.fixture
def sglang(tmp_path, monkeypatch):
    """A stand-in for the package, whose algorithms are the modules of a folder."""
    folder = tmp_path / "algorithm"
    folder.mkdir()
    names = ("sglang", "sglang.srt", "sglang.srt.dllm", "sglang.srt.dllm.algorithm")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[name].__path__ = [str(folder)]
    base = types.ModuleType("sglang.srt.dllm.algorithm.base")
    base.DllmAlgorithm, base.__file__ = FakeBase, str(folder / "base.py")
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "jax_unmask.pytorch.sglang", raising=False)
    yield importlib.import_module("jax_unmask.pytorch.sglang")
    sys.modules.pop("jax_unmask.pytorch.sglang", None)


def test_sglang_fills_blocks_as_our_rollout_does(sglang, tmp_path, logits):
    network = policies.NetworkConfig(
        hidden_dim=8, feedforward_dim=12, num_heads=1, time_embed_dim=4, initial_bias=-1.0
    )
    random_policy(tmp_path / "policy", network, context="block")
    assert sglang.install().read_text().endswith("import JaxUnmask as Algorithm\n")
    module = importlib.import_module("sglang.srt.dllm.algorithm.jax_unmask")
    settings = {"policy": str(tmp_path / "policy"), "gen_length": WIDTH}
    config = types.SimpleNamespace(block_size=WIDTH, mask_id=MASK, algorithm_config=settings)
    algorithm = module.Algorithm(config)
    prompt_part = torch.full((3, WIDTH), MASK)
    prompt_part[1, :3] = 1  # The end of a prompt lies in its first block.
    batch = types.SimpleNamespace(batch_size=3, input_ids=prompt_part.view(-1).clone())
    whole = torch.tensor(logits).view(-1, VOCABULARY)
    output = types.SimpleNamespace(full_logits=whole)
    forwards = algorithm.run(lambda batch: output, batch)

    masked = prompt_part.numpy() == MASK
    tokens, steps = prompt_part.numpy().copy(), 0
    acts, settings = policies.parse_policy(f"learned:{tmp_path / 'policy'}")
    acts = jax.jit(acts)
    while masked.any():
        ours, _ = observations(logits, 1)
        ours = ours.replace(
            masked=jnp.asarray(masked), legal=jnp.asarray(masked), step=jnp.full(3, steps)
        )
        fill = np.asarray(acts(settings, ours, jax.random.split(jax.random.key(0), 3)).fill)
        tokens = np.where(fill, ours.candidate, tokens)
        masked, steps = masked & ~fill, steps + 1
    np.testing.assert_array_equal(batch.input_ids.view(3, WIDTH).numpy(), tokens)
    assert forwards == steps + 1  # The last one stores the finished block in the cache.

    config.algorithm_config = {"policy": str(assets() / "policies" / "sudoku-seed0")}
    with pytest.raises(ValueError, match=r"config\.policy\.context='block'"):
        module.Algorithm(config)
