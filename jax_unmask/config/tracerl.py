"""Defaults of reinforcement learning of denoisers."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jax_unmask.config.shared import common, evaluation


def tracerl() -> ConfigDict:
    """Trains a denoiser on its own trajectories."""
    config = common("tracerl")
    # A prompt over its budget is cut; or, with truncate_prompts = False, left out. Either way it is
    # counted.
    config.task.prompt_length = 512
    config.model = ConfigDict(
        {
            "path": "GSAI-ML/LLaDA-8B-Instruct",
            "dtype": "bfloat16",
            # The weights that are trained stay float32 over all steps: bfloat16 ones do not move
            # under a learning rate of 1e-6.
            "param_dtype": "float32",
            # Compute activations again in the backward pass instead of keeping them.
            "remat": True,
        }
    )
    config.rollout = ConfigDict(
        {
            "gen_length": 512,
            "block_length": 32,
            "temperature": 0.8,
            # Draw from the most probable tokens only; 0 and 1 keep all of them.
            "top_k": 0,
            "top_p": 1.0,
            "policy": "top_confidence:tokens_per_step=1",
            "prompts_per_step": 32,
            "group_size": 8,
            "slots": 0,
            "vocab_chunk": 16384,
            # Parts of a batch of prompts, as in recipe policy_grpo: slow checks of one run beside
            # the rollout of the next.
            "parts": 1,
            "cache": "none",
            # End a row with the block that holds the end of its text (for block attention, where
            # the blocks behind are not seen).
            "stop_at_end": False,
        }
    )
    # Groups whose accuracy lies outside are left out, and so are those of equal rewards. Up to
    # `rounds` batches of prompts are rolled out to fill a batch of groups.
    config.filter = ConfigDict({"low": 0.2, "high": 0.8, "rounds": 4})
    # With alpha > 0 answers of fewer forwards earn more, as in recipe policy_grpo.
    config.reward = ConfigDict({"kind": "multiplicative", "alpha": 0.0, "advantage": "z_score"})
    config.learner = ConfigDict(
        {
            # "trace", or what it is compared with: "random_masking", "coupled", "diffu_grpo",
            # "espo". Nothing else needs to change.
            "surrogate": "trace",
            "shrink": 8,
            # With block attention, the block length in training (default: that of the rollout).
            "block_length": placeholder(int),
            # States per response of the other surrogates, pairs for "coupled" and "espo" (default:
            # as published, 25, 25, 1 and 2).
            "draws": placeholder(int),
            "mask_low": 0.1,
            "mask_high": 0.9,
            "mask_threshold": "row",
            "prompt_mask_ratio": 0.15,
            "clip": 0.2,
            "beta": 0.01,
            "reference_beta": 0.0,
            "kl": "k3",
            "normaliser": "step",
            "ratio_limit": 10.0,
            # Padding tokens trained per response, its first ones; -1 for all.
            "num_pads": 0,
            "temperature": 1.0,
            "passes": 1,
            "minibatches": 8,
            "chunk_size": 2,
            "positions_per_chunk": 256,
        }
    )
    config.value = ConfigDict({"enabled": False, "lr": 5e-6, "gamma": 1.0, "lam": 1.0, "clip": 0.2})
    # Train low-rank adapters instead of the weights, whose model.param_dtype may be bfloat16 then.
    # The result is exported with the adapters merged in. Rank 0: all weights. `targets` names the
    # linear maps, as in ("query", "value"); empty: all of attention and MLP.
    config.lora = ConfigDict({"rank": 0, "targets": (), "scale": 1.0})
    # Rewards of parts of a response, for runs with a value model (value.gamma = 0.99 published).
    # "steps" verifies the steps of tasks that can; "model" asks a language model.
    config.process = ConfigDict(
        {
            "judge": "none",
            # Tokens per part.
            "chunk_length": 200,
            # Of the judging model: a server that speaks OpenAI's chat completions, the name of its
            # model, replies per part, seconds per request, further attempts, requests at one time.
            "url": "http://localhost:8000/v1",
            "model": "",
            "votes": 3,
            "timeout": 120.0,
            "retries": 3,
            "workers": 16,
            # Environment variable that holds the key, if the server wants one.
            "api_key_variable": "",
        }
    )
    config.optimizer = ConfigDict(
        {
            "lr": 1e-6,
            "warmup_steps": 0,
            "schedule": "constant",
            "final_fraction": 0.0,
            "b1": 0.9,
            "b2": 0.999,
            "weight_decay": 0.0,
            "grad_clip": 1.0,
        }
    )
    config.train = ConfigDict({"steps": 50})
    # Where to write the trained denoiser in Hugging Face's format (default: WORKDIR/model).
    config.export = placeholder(str)
    config.eval = evaluation()
    return config
