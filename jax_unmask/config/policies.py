"""Defaults of the recipe that trains unmasking policies."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jax_unmask.config.shared import common, evaluation


def policy_grpo() -> ConfigDict:
    """Trains an unmasking policy against a frozen denoiser."""
    config = common("policy_grpo")
    config.model = ConfigDict(
        {
            # A shipped model (such as "sudoku"), a local Hugging Face or Orbax directory, or
            # a hub name.
            "path": "GSAI-ML/LLaDA-8B-Instruct",
            "dtype": "bfloat16",
            "param_dtype": "bfloat16",
            # "int8" or "fp8": the layers' matrices in a byte per weight (extra `quantization`).
            "quantization": placeholder(str),
        }
    )
    config.rollout = ConfigDict(
        {
            "gen_length": 256,
            "block_length": 32,
            "temperature": 0.0,
            "prompts_per_step": 16,
            "group_size": 8,
            # Rows that the denoiser serves at one time; a row that is done leaves its slot to one
            # that waits. 0: all rows of a step. Any number gives the same rollouts.
            "slots": 0,
            # Vocabulary entries whose logits exist at one time.
            "vocab_chunk": 16384,
            # Parts in which the prompts of a step are rolled out, one after the other: slow checks
            # of the responses of one run beside the rollout of the next. 1 keeps slots busiest.
            "parts": 1,
            # "none", "prefix", "dual" or "block", with settings as in
            # "dual:refresh_every=8,extra_tokens=16" (see rollout/caching.py). The policy learns in
            # the environment that it is given.
            "cache": "none",
            # End a row with the block that holds the end of its text; what is behind stays masked.
            "stop_at_end": False,
        }
    )
    config.policy = ConfigDict(
        {
            "distribution": "bernoulli",
            "context": "full",
            "dpls_stop_logit": 0.0,
            # Score arg-max fallbacks ("bernoulli_argmax") by their own likelihood instead of that
            # of a plain Bernoulli draw, as published.
            "exact_fallback": False,
            # Continue from a trained policy (a directory that the trainer or `export` wrote).
            "init_from": placeholder(str),
            # "confidence", "hidden" or a network of your own, see `policies.network_settings`.
            "network": {
                "kind": "confidence",
                "hidden_dim": 128,
                "feedforward_dim": 512,
                "num_heads": 2,
                "time_embed_dim": 128,
                "num_blocks": 1,
                "time_period": 1.0,
                "top_k": 1,
                "entropy": False,
                "token_buckets": 0,
                "position": False,
                "position_embedding": 0,
                "pair_attention": 0,
                "rank": False,
                "rank_attention": (),
                "candidate_attention": (),
                "hidden_size": 0,
                "initial_bias": -2.0,
            },
        }
    )
    config.reward = ConfigDict({"kind": "multiplicative", "alpha": 1.0})
    config.expert = ConfigDict(
        {
            "count": 0,
            "policy": "threshold:threshold=0.9",
            "block_length": 32,
            # Weight of the log-likelihood of what right expert rollouts did, beside the objective
            # (0 published), in the first so many steps.
            "imitation": 0.0,
            "imitation_steps": 0,
        }
    )
    config.learner = ConfigDict(
        {
            "clip": 0.5,
            "updates_per_batch": 2,
            "minibatches": 1,
            "entropy_coefficient": 0.0,
            "chunk_size": 512,
        }
    )
    config.optimizer = ConfigDict(
        {
            "lr": 3e-5,
            "warmup_steps": 100,
            "schedule": "cosine",
            "final_fraction": 0.0,
            "b1": 0.9,
            "b2": 0.99,
            "weight_decay": 0.1,
            "grad_clip": 0.2,
        }
    )
    # One epoch over GSM8K's 7,473 training problems, 16 prompts at a time.
    config.train = ConfigDict({"steps": 467})
    config.eval = evaluation()
    return config
