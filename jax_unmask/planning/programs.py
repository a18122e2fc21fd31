"""The programs of a training step, traced at full size from shapes: nothing is allocated."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jax_unmask import denoisers, policies
from jax_unmask.denoisers.quantization import quantize_params
from jax_unmask.denoisers.sharding import RULES
from jax_unmask.learners.experts import with_experts
from jax_unmask.learners.states.responses import Responses
from jax_unmask.learners.supervised.sft import SftBatch
from jax_unmask.planning.collectives import Collective, collectives
from jax_unmask.recipes import policy_grpo, sft, tracerl
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys
from jax_unmask.runtime.placement import Placement

Abstract = Any


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a training step.

    Attributes:
        name: what it does.
        lowered: the traced program (`jax.stages.Lowered`).
        has_denoiser: it runs the denoiser.
        temporary_bytes: memory of each device beside arguments and results while it runs; None
            unless compiled, like the rest.
        collectives: what devices send each other.
        seconds_to_compile: wall time of compiling.
    """

    name: str
    lowered: Any
    has_denoiser: bool = True
    temporary_bytes: int | None = None
    collectives: tuple[Collective, ...] | None = None
    seconds_to_compile: float | None = None

    def compiled(self) -> Program:
        """The same, compiled for the devices that it was traced for."""
        start = time.perf_counter()
        compiled = self.lowered.compile()
        return dataclasses.replace(
            self,
            temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
            collectives=tuple(collectives(compiled.as_text())),
            seconds_to_compile=time.perf_counter() - start,
        )


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A training step as shapes in their places.

    Attributes:
        lasting: what devices hold from step to step, by name.
        passing: what one program of a step leaves for the next.
        trained: parameters that are trained.
        programs: in the order in which they run.
    """

    lasting: dict[str, Abstract]
    passing: Abstract
    trained: Abstract
    programs: tuple[Program, ...]


def of_policy_grpo(
    config: ConfigDict, shape: denoisers.DenoiserConfig, placement: Placement
) -> Blueprint:
    """A step of recipe `policy_grpo`: rollout, rollout of experts if there are any, update."""
    parts = policy_grpo.build_parts(
        config, shape, (shape.eos_token_id,), slot_groups=placement.parts
    )
    denoiser, weights = denoisers.Denoiser(shape), denoisers.abstract_params(shape)
    if config.model.quantization is not None:
        kind = config.model.quantization
        weights = jax.eval_shape(lambda params: quantize_params(params, kind), weights)
    weights = placement.parameters(weights, RULES)
    state = jax.eval_shape(
        lambda key: parts.learner.init(
            parts.policy.init_params(key, config.rollout.gen_length), key
        ),
        jax.random.key(0),
    )
    state = placement.everywhere(state)
    group, experts = config.rollout.group_size, config.expert.count
    rows = config.rollout.prompts_per_step // config.rollout.parts

    def roll_out(name: str, size: int, policy: Any, params: Any, settings: RolloutSettings) -> Any:
        prompts, keys = _inputs(placement, rows * size, config.task.prompt_length)
        lowered = rollout.lower(denoiser, weights, policy, params, prompts, keys, settings)
        return Program(name, lowered)

    def records_of(program: Program) -> Abstract:
        records = jax.tree.map(_whole_step(config.rollout.parts), program.lowered.out_info.records)
        return placement.records(records)

    with placement.active():
        programs = [roll_out("rollout", group, parts.policy, state.params, parts.settings)]
        records = passing = records_of(programs[0])
        is_expert = None
        if experts:
            params = placement.everywhere(
                jax.eval_shape(lambda: jax.tree.map(jnp.asarray, parts.expert_params))
            )
            expert = roll_out(
                "expert rollout", experts, parts.expert, params, parts.expert_settings
            )
            programs.append(expert)
            theirs = records_of(expert)
            merged, is_expert = jax.eval_shape(
                lambda ours, theirs: with_experts(ours, theirs, group, experts), records, theirs
            )
            records, is_expert = placement.records(merged), placement.rows(is_expert)
            passing = (passing, theirs, records)
        advantages = placement.rows(jax.ShapeDtypeStruct((records.active.shape[1],), jnp.float32))
        update = type(parts.learner).update
        lowered = update.lower(parts.learner, state, records, advantages, is_expert)
    programs.append(Program("update", lowered, has_denoiser=False))
    return Blueprint(
        {"denoiser": weights, "policy and optimiser": state},
        passing,
        state.params["network"],
        tuple(programs),
    )


def of_tracerl(
    config: ConfigDict, shape: denoisers.DenoiserConfig, placement: Placement
) -> Blueprint:
    """A step of recipe `tracerl`: rollout and update of the same denoiser."""
    ends = (shape.eos_token_id,)
    denoiser = denoisers.Denoiser(shape)
    learner = tracerl.build_learner(config, denoiser, ends)
    settings = tracerl.build_settings(config, shape, ends, placement.parts)
    policy, policy_params = policies.parse_policy(config.rollout.policy)
    weights = placement.parameters(denoisers.abstract_params(shape), RULES)
    adapters = jax.eval_shape(lambda: tracerl.make_adapters(config, shape))
    state = jax.eval_shape(learner.init, weights, jax.random.key(0), adapters)
    state = placement.parameters(state, RULES)
    acting = state.params["denoiser"]
    # Otherwise training frees the loaded weights.
    needed = adapters is not None or config.learner.reference_beta > 0
    frozen = {"denoiser as loaded": weights} if needed else {}
    if adapters is not None:
        acting = placement.parameters(
            jax.eval_shape(denoisers.with_adapters, weights, acting), RULES
        )
    rows, length = config.rollout.prompts_per_step * config.rollout.group_size, settings.gen_length
    with placement.active():
        part = rows // config.rollout.parts
        asked, keys = _inputs(placement, part, config.task.prompt_length)
        params = placement.everywhere(
            jax.eval_shape(lambda: jax.tree.map(jnp.asarray, policy_params))
        )
        rolled = rollout.lower(denoiser, acting, policy, params, asked, keys, settings)
        prompts, _ = _inputs(placement, rows, config.task.prompt_length)
        canvas = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        given = (
            Responses(prompts=prompts, tokens=canvas, step_map=canvas),  # type: ignore[arg-type]
            jax.ShapeDtypeStruct((rows,), jnp.float32),
            jax.ShapeDtypeStruct((rows,), jnp.bool_),
        )
        update = type(learner).update.lower(
            learner,
            state,
            *placement.everywhere(given),
            weights if config.learner.reference_beta > 0 else None,
            weights if adapters is not None else None,
        )
    return Blueprint(
        {**frozen, "trained parameters and optimiser": state},
        given,
        state.params["denoiser"],
        (Program("rollout", rolled), Program("update", update)),
    )


def of_sft(config: ConfigDict, shape: denoisers.DenoiserConfig, placement: Placement) -> Blueprint:
    """A step of recipe `sft`."""
    learner = sft.build_learner(config, denoisers.Denoiser(shape))
    weights = placement.parameters(denoisers.abstract_params(shape), RULES)
    state = placement.parameters(jax.eval_shape(learner.init, weights, jax.random.key(0)), RULES)
    rows = config.data.batch_size
    prompts, _ = _inputs(placement, rows, config.task.prompt_length)
    targets = jax.ShapeDtypeStruct((rows, config.data.gen_length), jnp.int32)
    batch = SftBatch(prompts, placement.rows(targets))
    with placement.active():
        step = type(learner).step.lower(learner, state, batch)
    return Blueprint(
        {"trained parameters and optimiser": state},
        batch,
        state.params,
        (Program("update", step),),
    )


RECIPES: dict[str, Callable[[ConfigDict, denoisers.DenoiserConfig, Placement], Blueprint]] = {
    "policy_grpo": of_policy_grpo,
    "tracerl": of_tracerl,
    "sft": of_sft,
}
"""Those that can be planned."""


def _inputs(placement: Placement, rows: int, length: int) -> tuple[Any, Any]:
    """Prompts and keys of a batch."""
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    mask = jax.ShapeDtypeStruct(tokens.shape, jnp.bool_)
    keys = jax.eval_shape(lambda key: row_keys(key, rows), jax.random.key(0))
    prompts: Any = Prompts(tokens=tokens, mask=mask)  # type: ignore[arg-type]
    return placement.rows((prompts, keys))


def _whole_step(parts: int) -> Callable[[Any], jax.ShapeDtypeStruct]:
    """Records of a whole step, from those of one of its rollouts."""

    def join(leaf: Any) -> jax.ShapeDtypeStruct:
        steps, rows, *rest = leaf.shape
        return jax.ShapeDtypeStruct((steps, rows * parts, *rest), leaf.dtype)

    return join


def bytes_per_device(tree: Abstract) -> int:
    """Bytes of abstract arrays on one device."""

    def size(leaf: Any) -> int:
        shape, dtype = leaf.shape, leaf.dtype
        if leaf.sharding is not None:
            shape = leaf.sharding.shard_shape(shape)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            bits = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
            shape, dtype = bits.shape, bits.dtype
        return math.prod(shape) * dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))
