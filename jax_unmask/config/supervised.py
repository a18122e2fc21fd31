"""Defaults of supervised training of denoisers."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jax_unmask.config.shared import common, evaluation


def sft() -> ConfigDict:
    """Trains a small denoiser from scratch with the masked-diffusion objective."""
    config = common("sft")
    config.task.name = "sudoku"
    config.task.truncate_prompts = False
    config.model = ConfigDict(
        {
            # Continue from these weights, or None: random initial ones of the shape below.
            "path": placeholder(str),
            "dtype": "float32",
            "param_dtype": "float32",
            "hidden_size": 64,
            "num_layers": 3,
            "num_heads": 4,
            "num_kv_heads": 4,
            "intermediate_size": 176,
            "rope_theta": 10000.0,
            "norm_eps": 1e-5,
            # Embeddings of number tokens begin with what the numbers are worth, not at random
            # (only where `path` is None).
            "number_embeddings": False,
            # Block-causal attention in blocks of so many positions (only where `path` is None, and
            # for recipe state_sft); 0 for full attention.
            "attention_block": 0,
        }
    )
    config.data = ConfigDict({"batch_size": 256, "gen_length": 16})
    config.masking = ConfigDict(
        {
            "min_ratio": 1e-3,
            "max_weight": 20.0,
            "stratified": True,
            "suffix_fraction": 0.0,
            "suffix_block_length": 1,
            "suffix_target": "all",
        }
    )
    config.learner = ConfigDict({"ema_decay": 0.998})
    config.optimizer = ConfigDict(
        {
            "lr": 2e-3,
            "warmup_steps": 100,
            "schedule": "cosine",
            "final_fraction": 0.01,
            "b1": 0.9,
            "b2": 0.98,
            "weight_decay": 0.01,
            "grad_clip": 1.0,
        }
    )
    config.train = ConfigDict({"steps": 1000})
    # Where to write the trained denoiser in Hugging Face's format (default: WORKDIR/model).
    config.export = placeholder(str)
    config.eval = evaluation()
    return config


def state_sft() -> ConfigDict:
    """Trains a denoiser on given responses, in the states that a method chooses."""
    config = sft()
    config.recipe = "state_sft"
    del config.masking
    # Shorter canvases to which a batch is cut where all of its responses fit, with their ends (and
    # task.prompt_buckets for its prompts). Every length compiles its own program.
    config.data.length_buckets = ()
    config.model.remat = False
    config.learner = ConfigDict(
        {
            # "random": masks over the whole response. "semi_ar": a state per block, the blocks
            # behind masked (full attention). "block": masks in all blocks at once, each seeing the
            # finished ones before it (block attention). "trace": the states in which the denoiser
            # that training starts from would write the response (both kinds of attention). "ar":
            # next tokens, causally (a cold start for families whose logits are shifted).
            "method": "random",
            # Of "semi_ar", and with block attention.
            "block_length": 16,
            # Of "trace": tokens that a step writes, and steps that are merged into a state.
            "tokens_per_step": 2,
            "shrink": 1,
            # States per response of "random" and "block"; mask ratios of these and of "semi_ar".
            "draws": 1,
            "mask_low": 0.1,
            "mask_high": 0.9,
            # End-of-text tokens trained per response, its first ones; -1 for all.
            "num_pads": -1,
            "normaliser": "step",
            "chunk_size": 16,
            "positions_per_chunk": 256,
        }
    )
    return config
