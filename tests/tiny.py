"""Denoisers with random weights that are small enough for a test on a CPU."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_unmask import denoisers
from jax_unmask.denoisers.families import llada
from jax_unmask.denoisers.word_level import save_word_level

_ROLLOUTS = {
    "task.name": "sudoku",
    "task.prompt_length": 17,
    "model.dtype": "float32",
    "rollout.gen_length": 16,
    "rollout.block_length": 16,
    # Wrong answers are charged for their steps too, so that a random denoiser gives a signal.
    "reward.kind": "additive",
    "learner.minibatches": 2,
}
_POLICY = {
    **_ROLLOUTS,
    "policy.network.hidden_dim": 8,
    "policy.network.feedforward_dim": 8,
    "policy.network.time_embed_dim": 8,
    # At the default of -2 nearly every row takes all of its steps: no reward differs.
    "policy.network.initial_bias": 0.0,
    "optimizer.warmup_steps": 1,
}
# A policy network that reads all that one can read.
RICH_NETWORK: dict[str, Any] = {
    "num_blocks": 2,
    "top_k": 2,
    "entropy": True,
    "token_buckets": 5,
    "position": True,
    "position_embedding": 8,
    "pair_attention": 8,
    "rank": True,
    "logs": True,
    "rank_attention": (0.0, 2.0),
    "candidate_attention": (4.0, 0.0),
}
# What makes the default config of a recipe small enough for a test.
SETTINGS: dict[str, dict[str, Any]] = {
    "policy_grpo": _POLICY,
    "policy_environments": {
        **_POLICY,
        "policy.network.alphas": (0.1, 30.0),
        "environments": (
            "rollout.block_length=16",
            "rollout.gen_length=8 rollout.block_length=4 rollout.slots=2",
        ),
    },
    "tracerl": {
        **_ROLLOUTS,
        "filter.low": 0.0,
        "reward.alpha": 1.0,
        "learner.chunk_size": 8,
        "value.enabled": True,
    },
    "joint": {
        **_POLICY,
        "policy.network.alphas": (0.1, 30.0),
        "denoiser.filter.low": 0.0,
        "denoiser.reward.alpha": 1.0,
        "denoiser.reward.kind": "additive",
        "denoiser.learner.minibatches": 2,
        "denoiser.learner.chunk_size": 8,
    },
    "sft": {"task.prompt_length": 17, "optimizer.warmup_steps": 1},
    "state_sft": {"task.prompt_length": 17, "optimizer.warmup_steps": 1},
}


def denoiser_config(**changes: Any) -> denoisers.DenoiserConfig:
    """A denoiser of one layer; of its 12 tokens the last are the end and the mask. With changes."""
    last = changes.get("vocab_size", 12) - 1
    settings: dict[str, Any] = {
        "family": "llada",
        "vocab_size": 12,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 8,
        "intermediate_size": 16,
        "rope_theta": 1e4,
        "norm_eps": 1e-5,
        "max_length": 32,
        "tie_embeddings": False,
        "mask_token_id": last,
        "eos_token_id": last - 1,
        "pad_token_id": last - 1,
    }
    return denoisers.DenoiserConfig(**settings | changes)


def random_params(config: denoisers.DenoiserConfig, seed: int = 0) -> denoisers.Params:
    """Parameters of order 1 / sqrt(width) for tests that do not care: nothing is compiled."""
    random = np.random.default_rng(seed)

    def leaf(shape: jax.ShapeDtypeStruct) -> jax.Array:
        scale = shape.shape[-2] ** -0.5 if len(shape.shape) > 1 else 1.0
        return jnp.asarray(scale * random.normal(size=shape.shape), shape.dtype)

    return jax.tree.map(leaf, denoisers.abstract_params(config))


def save_model(
    directory: pathlib.Path, vocabulary: Sequence[str], *, sharpness: float = 1.0, **changes: Any
) -> None:
    """Writes a denoiser of up to 64 positions with a tokenizer of whole words.

    Args:
        directory: made if missing.
        vocabulary: the words.
        sharpness: factor of the weights; confidences differ more between positions where it is
            larger than 1.
        **changes: of its config, see `denoiser_config`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    special = save_word_level(directory, vocabulary)
    config = denoiser_config(
        vocab_size=special["vocab_size"],
        max_length=64,
        mask_token_id=special["mask"],
        eos_token_id=special["eos"],
        pad_token_id=special["pad"],
        bos_token_id=special["bos"],
        **changes,
    )
    params = denoisers.init_params(config, jax.random.key(1))
    params = jax.tree.map(lambda leaf: sharpness * leaf, params)
    tokenizer = denoisers.load_tokenizer(directory)
    denoisers.save_pretrained(directory, denoisers.Denoiser(config), params, tokenizer)


def save_weights(
    directory: pathlib.Path, vocab_size: int, *, mask: int, eos: int, max_length: int = 256
) -> None:
    """Writes random weights and config.json; the tokenizer is not ours."""
    config = denoiser_config(
        vocab_size=vocab_size,
        hidden_size=32,
        head_dim=16,
        intermediate_size=32,
        max_length=max_length,
        mask_token_id=mask,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    params = denoisers.init_params(config, jax.random.key(0))
    denoisers.save_pretrained(directory, denoisers.Denoiser(config), params)


def byte_tokenizer(special: Sequence[str]) -> Any:
    """A tokenizer of bytes with some special tokens behind them."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={character: k for k, character in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def save_byte_model(directory: pathlib.Path) -> None:
    """Writes a denoiser that reads bytes, with LLaDA's special tokens and no chat template."""
    tokenizer = byte_tokenizer(["<|endoftext|>", "<|mdm_mask|>", *llada.SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "mask_token": "<|mdm_mask|>"}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    )
    save_weights(directory, tokenizer.get_vocab_size(), mask=257, eos=256)
