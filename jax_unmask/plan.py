"""Says what a training run needs, without its weights: `python -m jax_unmask.plan --config=...`.

Counts parameters and bytes from shapes alone, and traces the rollout and the update of the config
at full size. With --compile they are compiled ahead of time as well, on the device at hand, which
tells the memory of their temporaries. Nothing of the model's size is ever allocated.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from jax_unmask import commands, denoisers, validation
from jax_unmask.denoisers import families
from jax_unmask.denoisers.pretrained import read_config
from jax_unmask.denoisers.quantization import quantize_params
from jax_unmask.learners.experts import with_experts
from jax_unmask.recipes.base import check_fits
from jax_unmask.recipes.policy_grpo import Parts, build_parts
from jax_unmask.rollout import Prompts, RolloutSettings, rollout, row_keys
from jax_unmask.runtime import compilation
from jax_unmask.runtime.config import ConfigError
from jax_unmask.shipped import resolve_model


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of a training step.

    Attributes:
        name: what it does.
        lowered: the traced program (`jax.stages.Lowered`).
        temporary_bytes: memory beside arguments and results while it runs; None unless compiled.
        seconds_to_compile: wall time of compiling; None unless compiled.
    """

    name: str
    lowered: Any
    temporary_bytes: int | None = None
    seconds_to_compile: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one training step needs on its device.

    Attributes:
        config: the config planned for.
        denoiser: the denoiser.
        denoiser_parameters: number of its parameters.
        policy_parameters: number of trained parameters.
        weights_bytes: size of the denoiser's parameters.
        state_bytes: size of the training state: policy, optimiser, counters, keys.
        records_bytes: size of what the rollouts of a step record for the learner; with experts
            their rows count twice, by themselves and merged into the groups.
        programs: the policy's rollout, the experts' (if any), and the update.
    """

    config: ConfigDict
    denoiser: denoisers.DenoiserConfig
    denoiser_parameters: int
    policy_parameters: int
    weights_bytes: int
    state_bytes: int
    records_bytes: int
    programs: tuple[Program, ...]

    @property
    def rows(self) -> int:
        """Rows of the policy's rollout."""
        return self.config.rollout.prompts_per_step * self.config.rollout.group_size

    @property
    def widened_bytes(self) -> int:
        """Float32 copies of bfloat16 weights among the temporaries of a rollout.

        XLA has no bfloat16 matrix products for CPUs, and converts all matrices before the loop over
        the steps; other devices make no such copies.
        """
        is_narrow = jnp.dtype(self.denoiser.dtype).itemsize < 4
        if jax.default_backend() != "cpu" or not is_narrow:
            return 0
        table = 0 if self.denoiser.tie_embeddings else _table_size(self.denoiser)
        return 4 * (self.denoiser_parameters - table)

    @property
    def peak_bytes(self) -> int | None:
        """Most memory that a step needs at one time; None unless compiled."""
        temporaries = [program.temporary_bytes for program in self.programs]
        if any(size is None for size in temporaries):
            return None
        lasting = self.weights_bytes + self.state_bytes + self.records_bytes
        return lasting + max(size for size in temporaries if size is not None)

    def table(self) -> str:
        """The plan as text."""
        config, denoiser = self.config, self.denoiser
        canvas, device = config.rollout.gen_length, jax.devices()[0]
        logits = 4 * self.rows * canvas * denoiser.vocab_size
        lines = [
            f"denoiser  {config.model.path}: {denoiser.num_layers} layers, width "
            f"{denoiser.hidden_size}, {denoiser.vocab_size:,} tokens, "
            f"{jnp.dtype(denoiser.param_dtype).name}",
            f"          {self.denoiser_parameters:,} parameters",
            f"policy    {self.policy_parameters:,} parameters",
            f"step      {self.rows} rows ({config.rollout.prompts_per_step} prompts x "
            f"{config.rollout.group_size}) of {config.task.prompt_length} + {canvas} tokens, "
            f"blocks of {config.rollout.block_length}, {config.expert.count} experts per group",
            "",
            f"memory on one device ({device.platform}: {device.device_kind})",
            _line("denoiser weights", self.weights_bytes),
            _line("policy and optimiser", self.state_bytes),
            _line("records of the rollouts", self.records_bytes),
        ]
        for program in self.programs:
            if program.temporary_bytes is None:
                continue
            line = _line(f"temporaries of {program.name}", program.temporary_bytes)
            lines.append(f"{line}   compiled in {program.seconds_to_compile:.1f} s")
        if self.peak_bytes is None:
            names = ", ".join(program.name for program in self.programs)
            lines.append(f"  {names}: traced without error; --compile measures their temporaries")
        else:
            lines.append(_line("peak", self.peak_bytes))
            if self.widened_bytes:
                lines.append(
                    _line("  of it float32 copies of weights, CPUs only", self.widened_bytes)
                )
            per_row = ((self.programs[0].temporary_bytes or 0) - self.widened_bytes) / self.rows
            lines.append(_line("temporaries of one row of the rollout", per_row))
        lines.append(_line("for comparison: logits of all canvases", logits))
        return "\n".join(lines)


def plan(config: ConfigDict, *, compile_programs: bool = False) -> Plan:
    """Plans a training step from shapes.

    Args:
        config: a full config of recipe policy_grpo, see `jax_unmask.config`.
        compile_programs: compile rollout and update for the default device.

    Raises:
        ConfigError: the config makes no sense, or the shape of its model is not known.
        ValueError: the model's config.json is not supported.
    """
    validation.validate(config)
    if config.recipe != "policy_grpo":
        raise ConfigError(
            "recipe", config.recipe, "only policy_grpo can be planned", "Give such a config"
        )
    shape = denoiser_config(config)
    check_fits(shape, config.task.prompt_length, config.rollout.gen_length)
    parts = build_parts(config)
    weights = denoisers.abstract_params(shape)
    if config.model.quantization is not None:
        weights = jax.eval_shape(
            lambda params: quantize_params(params, config.model.quantization), weights
        )
    state = jax.eval_shape(
        lambda key: parts.learner.init(
            parts.policy.init_params(key, config.rollout.gen_length), key
        ),
        jax.random.key(0),
    )
    programs, records_bytes = _programs(config, denoisers.Denoiser(shape), weights, parts, state)
    if compile_programs:
        programs = tuple(_compile(program) for program in programs)
    return Plan(
        config=config,
        denoiser=shape,
        denoiser_parameters=denoisers.count_params(shape),
        policy_parameters=_count(state.params["network"]),
        weights_bytes=_bytes(weights),
        state_bytes=_bytes(state),
        records_bytes=records_bytes,
        programs=programs,
    )


def denoiser_config(config: ConfigDict) -> denoisers.DenoiserConfig:
    """Shape of `config.model.path`: of its own config.json, or as published under that hub name.

    Raises:
        ConfigError: it is neither a directory nor a known hub name.
    """
    path = config.model.path
    directory = pathlib.Path(resolve_model(path)).expanduser()
    if directory.is_dir():
        shape = read_config(directory)
    elif path in families.PUBLISHED:
        shape = families.published_config(path)
    else:
        raise ConfigError(
            "model.path",
            path,
            "its shape is not known here",
            f"Give a directory with its config.json, or one of {', '.join(families.PUBLISHED)}",
        )
    return dataclasses.replace(
        shape, dtype=config.model.dtype, param_dtype=config.model.param_dtype
    )


def _programs(
    config: ConfigDict, denoiser: denoisers.Denoiser, weights: Any, parts: Parts, state: Any
) -> tuple[tuple[Program, ...], int]:
    """The traced programs of a step, and the size of the records that pass between them."""

    def roll_out(name: str, size: int, policy: Any, params: Any, settings: RolloutSettings) -> Any:
        rows = config.rollout.prompts_per_step * size
        tokens = jax.ShapeDtypeStruct((rows, config.task.prompt_length), jnp.int32)
        mask = jax.ShapeDtypeStruct(tokens.shape, jnp.bool_)
        prompts: Any = Prompts(tokens=tokens, mask=mask)  # type: ignore[arg-type]
        keys = jax.eval_shape(lambda key: row_keys(key, rows), jax.random.key(0))
        return Program(
            name,
            rollout.lower(denoiser, weights, policy, params, prompts, keys, settings),
        )

    group, experts = config.rollout.group_size, config.expert.count
    programs = [roll_out("rollout", group, parts.policy, state.params, parts.settings)]
    records = _records(programs[0])
    size, is_expert = _bytes(records), None
    if experts:
        expert = roll_out(
            "expert rollout", experts, parts.expert, parts.expert_params, parts.expert_settings
        )
        programs.append(expert)
        merged, is_expert = jax.eval_shape(
            lambda ours, theirs: with_experts(ours, theirs, group, experts),
            records,
            _records(expert),
        )
        size += _bytes(_records(expert)) + _bytes(merged)
        records = merged
    rows = records.active.shape[1]
    advantages = jax.ShapeDtypeStruct((rows,), jnp.float32)
    update = type(parts.learner).update
    lowered = update.lower(parts.learner, state, records, advantages, is_expert)
    programs.append(Program("update", lowered))
    return tuple(programs), size


def _records(program: Program) -> Any:
    """Abstract records of a traced rollout."""
    records = program.lowered.out_info.records
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), records)


def _compile(program: Program) -> Program:
    start = time.perf_counter()
    memory = program.lowered.compile().memory_analysis()
    return dataclasses.replace(
        program,
        temporary_bytes=memory.temp_size_in_bytes,
        seconds_to_compile=time.perf_counter() - start,
    )


def _bytes(tree: Any) -> int:
    """Size of abstract arrays."""

    def size(leaf: Any) -> int:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return math.prod(leaf.shape) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def _table_size(denoiser: denoisers.DenoiserConfig) -> int:
    return denoiser.vocab_size * denoiser.hidden_size


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _line(name: str, size: float) -> str:
    unit, scale = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
    return f"  {name:<46}{size / scale:>9.2f} {unit}"


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings are --config.KEY=VALUE")
    commands.set_up_logging()
    compilation.enable_cache()
    with commands.clear_errors():
        print(plan(flags.FLAGS.config, compile_programs=flags.FLAGS.compile).table())


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Experiment file.", lock_config=True)
    flags.DEFINE_bool("compile", False, "Compile rollout and update, and measure temporaries.")
    flags.mark_flag_as_required("config")
    commands.run(main)
