"""Default values of every config key: the one place where they are written down.

An experiment in `configs/` starts from `policy_grpo()`, `sft()`, `tracerl()` or `curriculum()` and
changes what differs. The defaults of `policy_grpo` and `tracerl` are the published ones for
LLaDA-8B-Instruct (arXiv 2512.09106, section 4, and 2509.06949, appendix B, with their public
configurations).
"""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

RECIPES = ("policy_grpo", "sft", "state_sft", "tracerl")


def _common(recipe: str) -> ConfigDict:
    config = ConfigDict()
    config.recipe = recipe
    config.seed = 0
    config.task = ConfigDict(
        {
            "name": "gsm8k",
            # Directory or file of the data; not used by tasks that generate their problems.
            "path": placeholder(str),
            # Further settings of the task, such as "difficulty=level:3..5"; of a task of a mixture
            # as "math.equivalence=symbolic".
            "settings": (),
            # Tasks of task "mixture", with weights as in "gsm8k=2".
            "mixture": ("gsm8k", "math"),
            # Read the data through TensorFlow Datasets from this data_dir instead.
            "tfds_data_dir": placeholder(str),
            "prompt_length": 200,
            # Shorter lengths to which prompts are padded where they fit: in evaluations each
            # problem, in training each batch. Every length compiles its own programs.
            "prompt_buckets": (),
            # Keep the last `prompt_length` tokens of longer prompts, as published; otherwise a
            # prompt over its budget is an error.
            "truncate_prompts": True,
        }
    )
    config.checkpoint = ConfigDict(
        {"every": 100, "keep_latest": 2, "keep_best": 1, "best_metric": "", "best_mode": "max"}
    )
    config.log = ConfigDict({"every": 1, "tensorboard": True, "wandb": False})
    return config


def curriculum() -> ConfigDict:
    """Several trainings in a row; see `jax_unmask.curriculum`."""
    return ConfigDict({"recipe": "curriculum", "stages": ()})


def policy_grpo() -> ConfigDict:
    """Trains an unmasking policy against a frozen denoiser."""
    config = _common("policy_grpo")
    config.model = ConfigDict(
        {
            # A shipped model ("sudoku", "arithmetic"), a local Hugging Face or Orbax directory, or
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
            "network": {
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


def evaluation() -> ConfigDict:
    """What `jax_unmask.eval` measures."""
    return ConfigDict(
        {
            # After training, evaluate the trained policy and the heuristics of `policies`.
            "after_training": False,
            "split": "test",
            "prompt_style": "evaluation",
            "num_problems": 1024,
            # Problems that the denoiser serves at one time; one that is done makes room for the
            # next.
            "batch_size": 128,
            # 0 stands for the whole canvas.
            "block_lengths": (32, 256),
            # Further things to vary, as "KEY=A|B": models, tasks, canvas lengths (see
            # evaluation/axes.py). All combinations are measured, into one report.
            "axes": (),
            # Caches of the rollouts, each measured; none given: that of `rollout.cache`.
            "caches": (),
            # End a row with the block that holds the end of its text.
            "stop_at_end": False,
            # "name:setting=value": a heuristic, or "learned:DIR" for a trained policy; several
            # settings as a|b|c or low..high/step, one block length as a trailing @32 (see
            # evaluation/grid.py).
            "policies": (
                "random:tokens_per_step=1|2|4|8",
                "left_to_right:tokens_per_step=1|2|4|8",
                "top_confidence:tokens_per_step=1|2|4|8",
                "margin:tokens_per_step=1|2|4|8",
                "threshold:threshold=0.1..0.9/0.05|0.925|0.95|0.97|0.98|0.99|0.995|0.999",
                "factor:factor=0.05|0.1|0.2|0.3|0.4|0.5|0.6|0.75|1.0|1.25|1.5|2.0|3.0",
                "entropy_bounded:gamma=0.01|0.02|0.05|0.1|0.2|0.3|0.4|0.5|0.75|1.0|1.5|2.0|3.0",
            ),
            # Names of policies that ship with the package, or patterns of names ("sudoku-*@16").
            "shipped": (),
            # Test-time modes of trained and shipped policies, as `learned` settings.
            "trained": ("temperature=1.0",),
            # Seeds of what policies draw; those that draw nothing are measured once.
            "seeds": (0,),
            # Problems of the validation split on which heuristic settings are chosen; 0: none.
            "validation_problems": 0,
            # Problems of the report's examples and trajectory viewer, and the policies shown there,
            # in the notation of `policies`; none: the trained one, and the best at its speed.
            "examples": 8,
            "viewer": (),
            # Training runs whose curves the report shows: workdirs, metrics files, or patterns.
            "curves": (),
        }
    )


def sft() -> ConfigDict:
    """Trains a small denoiser from scratch with the masked-diffusion objective."""
    config = _common("sft")
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


def tracerl() -> ConfigDict:
    """Trains a denoiser on its own trajectories."""
    config = _common("tracerl")
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
