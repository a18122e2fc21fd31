"""Checks a whole config before anything is loaded or compiled."""

from __future__ import annotations

from typing import get_args

from ml_collections import ConfigDict

from jax_unmask import config as defaults
from jax_unmask import notation, policies, tasks
from jax_unmask.denoisers import quantization
from jax_unmask.environment.bundle import build_cache
from jax_unmask.evaluation import axes
from jax_unmask.evaluation.candidates import candidates
from jax_unmask.learners.losses import KlEstimator, Normaliser
from jax_unmask.learners.states.surrogates import Threshold
from jax_unmask.policies.learned import NETWORKS
from jax_unmask.recipes.process import JUDGES
from jax_unmask.recipes.state_sft import METHODS
from jax_unmask.recipes.tracerl import SURROGATES
from jax_unmask.runtime import config as check
from jax_unmask.runtime import placement as placements
from jax_unmask.tasks import rewards

EXEMPT = ("log.*", "watch.*", "checkpoint.*", "eval.*", "mesh.*", "rollout.slots")
"""Keys that may change when a run is resumed: they do not touch what is trained, but for the
rounding of sums that are taken over other shapes."""


def validate(config: ConfigDict) -> None:
    """Checks names, types, values and relations of a config.

    Raises:
        jax_unmask.runtime.config.ConfigError: the first mistake, with key, value and remedy.
    """
    if "recipe" not in config:
        raise check.ConfigError(
            "recipe", None, "the key is missing", f"Choose one of {', '.join(defaults.RECIPES)}"
        )
    check.one_of(config, "recipe", defaults.RECIPES)
    known = getattr(defaults, config.recipe)()
    if config.recipe == "policy_grpo" and "kind" in config.policy.network:
        _exists(config, "policy.network.kind", NETWORKS)
        known.policy.network = policies.network_settings(config.policy.network.kind)
    check.validate(config, known)
    _exists(config, "task.name", tasks.TASKS)
    check.positive(config, "task.prompt_length", "train.steps", "log.every", "checkpoint.every")
    check.require(
        all(isinstance(size, int) and size > 0 for size in config.task.prompt_buckets),
        config,
        "task.prompt_buckets",
        "it must hold lengths in tokens",
        "Give whole numbers below task.prompt_length, such as (96, 128, 160)",
    )
    check.positive(config, "checkpoint.keep_latest")
    check.non_negative(config, "checkpoint.keep_best", "checkpoint.grace_seconds", "seed")
    check.one_of(config, "checkpoint.best_mode", ("max", "min"))
    check.non_negative(config, "watch.stall_seconds", "watch.profile_steps")
    for key in ("model.dtype", "model.param_dtype"):
        check.one_of(config, key, ("float32", "bfloat16"))
    _optimizer(config)
    checks = {"policy_grpo": _policy_grpo, "sft": _sft, "state_sft": _state_sft}
    (checks | {"tracerl": _tracerl})[config.recipe](config)
    _mesh(config)
    _evaluation(config)


def _exists(config: ConfigDict, key: str, names: notation.Names) -> None:
    """The value is a short name or the import path of something that exists."""
    try:
        names(check.get(config, key))
    except notation.NotationError as error:
        raise check.ConfigError(key, check.get(config, key), str(error), "Correct it") from error


def _optimizer(config: ConfigDict) -> None:
    check.positive(config, "optimizer.lr", "optimizer.grad_clip")
    check.non_negative(config, "optimizer.warmup_steps", "optimizer.weight_decay")
    check.within(config, "optimizer.final_fraction", 0.0, 1.0)
    check.one_of(config, "optimizer.schedule", ("cosine", "constant", "stable"))
    for key in ("optimizer.b1", "optimizer.b2"):
        check.within(config, key, 0.0, 1.0 - 1e-9)
    steps = config.train.steps
    if config.recipe == "policy_grpo":
        steps *= config.learner.updates_per_batch * config.learner.minibatches
    elif config.recipe == "tracerl":
        steps *= config.learner.passes * config.learner.minibatches
    check.require(
        config.optimizer.schedule == "constant" or config.optimizer.warmup_steps < steps,
        config,
        "optimizer.warmup_steps",
        f"it leaves nothing of the run's {steps} optimiser steps",
        "Lower it or raise train.steps",
    )


def _policy_grpo(config: ConfigDict) -> None:
    check.positive(
        config,
        "rollout.gen_length",
        "rollout.prompts_per_step",
        "rollout.vocab_chunk",
        "learner.updates_per_batch",
        "learner.minibatches",
        "learner.chunk_size",
    )
    check.divides(config, "rollout.block_length", "rollout.gen_length")
    check.divides(config, "rollout.parts", "rollout.prompts_per_step")
    check.non_negative(config, "rollout.temperature", "reward.alpha", "expert.count")
    check.non_negative(config, "expert.imitation", "expert.imitation_steps")
    check.non_negative(config, "rollout.slots")
    check.non_negative(config, "learner.entropy_coefficient")
    check.within(config, "learner.clip", 1e-9, 1.0 - 1e-9)
    check.one_of(config, "reward.kind", tuple(rewards.REWARDS))
    check.one_of(config, "policy.distribution", ("bernoulli", "bernoulli_argmax", "dpls"))
    check.one_of(config, "policy.context", ("full", "block"))
    if config.model.quantization is not None:
        check.one_of(config, "model.quantization", tuple(quantization.TYPES))
    _has_groups(config)
    build_cache(config.rollout.cache, "rollout.cache")
    check.require(
        bool(config.expert.imitation) == bool(config.expert.imitation_steps),
        config,
        "expert.imitation",
        f"expert.imitation_steps = {config.expert.imitation_steps}, and one is nothing without the "
        "other",
        "Give both, or leave both at 0",
    )
    check.require(
        not config.expert.imitation or config.expert.count > 0,
        config,
        "expert.imitation",
        "there is no expert to imitate (expert.count = 0)",
        "Set expert.count to at least 1, or expert.imitation and imitation_steps to 0",
    )
    if config.expert.count:
        check.divides(config, "expert.block_length", "rollout.gen_length")
        _has_final_tokens(config, "expert.policy")
        check.require(
            config.rollout.block_length == config.rollout.gen_length,
            config,
            "expert.count",
            "expert steering is for full diffusion",
            f"Set expert.count = 0, or rollout.block_length = {config.rollout.gen_length}",
        )


def _has_groups(config: ConfigDict) -> None:
    check.require(
        config.rollout.group_size >= 2,
        config,
        "rollout.group_size",
        "a group of fewer than two rollouts has no advantages",
        "Give at least 2",
    )


def _tracerl(config: ConfigDict) -> None:
    check.positive(
        config,
        "rollout.gen_length",
        "rollout.prompts_per_step",
        "rollout.vocab_chunk",
        "filter.rounds",
        "learner.shrink",
        "learner.ratio_limit",
        "learner.temperature",
        "learner.passes",
        "learner.minibatches",
        "learner.chunk_size",
        "learner.positions_per_chunk",
        "value.lr",
        "value.clip",
    )
    check.divides(config, "rollout.block_length", "rollout.gen_length")
    check.divides(config, "rollout.parts", "rollout.prompts_per_step")
    check.non_negative(config, "rollout.temperature", "rollout.slots", "reward.alpha")
    check.non_negative(config, "rollout.top_k")
    check.within(config, "rollout.top_p", 1e-9, 1.0)
    check.non_negative(config, "learner.beta", "learner.reference_beta")
    for key in ("filter.low", "filter.high", "learner.mask_low", "learner.mask_high"):
        check.within(config, key, 0.0, 1.0)
    check.at_most(config, "filter.low", "filter.high")
    check.at_most(config, "learner.mask_low", "learner.mask_high")
    for key in ("value.gamma", "value.lam"):
        check.within(config, key, 0.0, 1.0)
    check.within(config, "learner.clip", 1e-9, 1.0 - 1e-9)
    check.within(config, "learner.prompt_mask_ratio", 0.0, 1.0 - 1e-9)
    check.one_of(config, "learner.surrogate", SURROGATES)
    check.one_of(config, "learner.mask_threshold", get_args(Threshold))
    check.one_of(config, "learner.kl", get_args(KlEstimator))
    check.one_of(config, "learner.normaliser", get_args(Normaliser))
    check.one_of(config, "reward.kind", tuple(rewards.REWARDS))
    check.one_of(config, "reward.advantage", ("z_score", "centred"))
    for key in ("learner.draws", "learner.block_length"):
        if check.get(config, key) is not None:
            check.positive(config, key)
    check.require(
        config.learner.num_pads >= -1,
        config,
        "learner.num_pads",
        "it is a number of tokens",
        "Give 0 or more, or -1 for all padding",
    )
    check.non_negative(config, "lora.rank")
    check.positive(config, "lora.scale")
    check.require(
        config.lora.rank > 0 or config.model.param_dtype == "float32",
        config,
        "model.param_dtype",
        "steps of reinforcement are too small for weights of 16 bits, which would not move",
        "Set float32, or lora.rank above 0: adapters are float32 beside frozen weights",
    )
    check.one_of(config, "process.judge", JUDGES)
    check.positive(
        config, "process.chunk_length", "process.votes", "process.timeout", "process.workers"
    )
    check.non_negative(config, "process.retries")
    check.require(
        config.process.judge == "none" or config.value.enabled,
        config,
        "process.judge",
        "rewards of parts need a value model to become advantages (value.enabled = False)",
        "Set value.enabled = True, or process.judge = 'none'",
    )
    check.require(
        config.process.judge != "model" or bool(config.process.model),
        config,
        "process.model",
        "it names no model",
        "Give the name that the server at process.url knows",
    )
    check.require(
        config.process.judge != "model" or config.process.url.startswith(("http://", "https://")),
        config,
        "process.url",
        "it is no address",
        "Give one such as http://localhost:8000/v1",
    )
    check.require(
        not config.value.enabled or config.learner.surrogate == "trace",
        config,
        "value.enabled",
        "values belong to the steps of a trace",
        "Set learner.surrogate = 'trace', or value.enabled = False",
    )
    _has_groups(config)
    _has_final_tokens(config, "rollout.policy")


def _has_final_tokens(config: ConfigDict, key: str) -> None:
    """Refuses policies that cannot be read, and those that edit: a trace has one step per token."""
    value = check.get(config, key)
    try:
        policy, _ = policies.parse_policy(value)
    except (ValueError, FileNotFoundError) as error:
        raise check.ConfigError(key, value, str(error), "Correct it") from error
    check.require(
        policy.needs.post_steps is None,
        config,
        key,
        "it edits tokens that were filled, and learners need one step per token",
        "Choose one that does not, such as dynamic",
    )


def _sft(config: ConfigDict) -> None:
    _denoiser_and_data(config)
    check.within(config, "masking.min_ratio", 1e-9, 1.0 - 1e-9)
    check.within(config, "masking.suffix_fraction", 0.0, 1.0)
    check.divides(config, "masking.suffix_block_length", "data.gen_length")
    check.one_of(config, "masking.suffix_target", ("all", "block"))
    check.within(config, "learner.ema_decay", 0.0, 1.0 - 1e-9)
    check.require(
        config.masking.max_weight >= 1.0,
        config,
        "masking.max_weight",
        "a fully masked row weighs 1",
        "Give at least 1",
    )
    check.require(
        config.model.attention_block == 0,
        config,
        "model.attention_block",
        "this recipe shows whole texts, whose finished blocks a block-causal model would see",
        "Set 0, or use recipe state_sft",
    )


def _state_sft(config: ConfigDict) -> None:
    _denoiser_and_data(config)
    check.one_of(config, "learner.method", METHODS)
    check.one_of(config, "learner.normaliser", get_args(Normaliser))
    check.positive(
        config,
        "learner.block_length",
        "learner.tokens_per_step",
        "learner.shrink",
        "learner.draws",
        "learner.chunk_size",
        "learner.positions_per_chunk",
    )
    for key in ("learner.mask_low", "learner.mask_high"):
        check.within(config, key, 0.0, 1.0)
    check.at_most(config, "learner.mask_low", "learner.mask_high")
    block = 1 if config.learner.method in ("random", "ar") else config.learner.block_length
    check.require(
        all(
            isinstance(size, int) and size > 0 and size % block == 0
            for size in config.data.length_buckets
        ),
        config,
        "data.length_buckets",
        "it must hold lengths in tokens" + (f", multiples of {block}" if block > 1 else ""),
        "Give whole numbers below data.gen_length",
    )
    check.require(
        not config.data.length_buckets or config.learner.num_pads >= 0,
        config,
        "data.length_buckets",
        "learner.num_pads = -1 trains all padding, which shorter lengths would cut off",
        "Set learner.num_pads = 1 (the end of a text), or leave the lengths out",
    )


def _denoiser_and_data(config: ConfigDict) -> None:
    check.non_negative(config, "model.attention_block")
    check.positive(
        config,
        "data.batch_size",
        "data.gen_length",
        "model.hidden_size",
        "model.num_layers",
        "model.num_heads",
        "model.num_kv_heads",
        "model.intermediate_size",
        "model.rope_theta",
        "model.norm_eps",
    )
    check.divides(config, "model.num_heads", "model.hidden_size")
    check.divides(config, "model.num_kv_heads", "model.num_heads")


def _evaluation(config: ConfigDict) -> None:
    check.one_of(config, "eval.split", ("train", "validation", "test"))
    check.positive(config, "eval.num_problems", "eval.batch_size")
    check.non_negative(config, "eval.validation_problems", "eval.examples")
    axes.combinations(config)
    check.require(
        not (config.eval.after_training and config.eval.axes),
        config,
        "eval.axes",
        "after training there is one model and one task",
        "Leave it empty, and run jax_unmask.eval with it afterwards",
    )
    for text in config.eval.caches:
        build_cache(text, "eval.caches")
    if config.eval.after_training:
        candidates(config)  # Finds the mistakes that would else show after hours of training.


def _mesh(config: ConfigDict) -> None:
    """The mesh fits the devices, and what is cut into parts divides among them."""
    placement = placements.from_config(config)
    parts, feeds = placement.parts, placement.feeds
    where = f"mesh.data x mesh.fsdp = {parts} parts"

    def divides(key: str, count: int, by: int, what: str, unless: bool = False) -> None:
        check.require(
            unless or count % by == 0,
            config,
            key,
            f"{what} do not divide among {where if by == parts else f'{by} feeding processes'}",
            f"Give a multiple, or another mesh (data={config.mesh.data}, fsdp={config.mesh.fsdp}, "
            f"tensor={config.mesh.tensor})",
        )

    if "data" in config:
        size = config.data.batch_size
        divides("data.batch_size", size, feeds, f"its {size} rows")
        divides("data.batch_size", size, parts, f"its {size} rows")
    else:
        rollout = config.rollout
        prompts, pieces = rollout.prompts_per_step, rollout.parts
        rows = prompts * rollout.group_size // pieces
        divides("rollout.prompts_per_step", prompts, feeds, f"its {prompts} prompts")
        divides("rollout.prompts_per_step", rows, parts, f"the {rows} rows of a rollout")
        divides("rollout.slots", rollout.slots, parts, "they", unless=not rollout.slots)
        if "expert" in config and config.expert.count:
            rows = prompts * config.expert.count // pieces
            divides("expert.count", rows, parts, f"the {rows} expert rows of a rollout")
        check.require(
            prompts % (feeds * pieces) == 0,
            config,
            "rollout.parts",
            f"the {prompts // feeds} prompts of each of {feeds} feeding processes do not divide "
            "into them",
            "Give a divisor",
        )
    if config.recipe in ("tracerl", "state_sft"):
        divides("learner.chunk_size", config.learner.chunk_size, parts, "its states")
