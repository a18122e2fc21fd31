"""Plans a training run without its weights: `python -m jax_unmask.plan`."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict

from jax_unmask import denoisers, recipes
from jax_unmask.commands import command_line
from jax_unmask.denoisers import sharding
from jax_unmask.environment.settings import RunSettings
from jax_unmask.planning import compilers
from jax_unmask.planning.compilers import Compiler
from jax_unmask.planning.programs import Program
from jax_unmask.recipes import speed
from jax_unmask.recipes.base import ASSUMED_UTILISATION, Work, bytes_per_device, check_fits
from jax_unmask.recipes.layout import USABLE, Estimate, compare_rollouts, denoiser_shape, estimate
from jax_unmask.recipes.rollouts import RollingSettings
from jax_unmask.runtime import accelerators, compilation, terminal
from jax_unmask.runtime import mesh as meshes
from jax_unmask.runtime import placement as placements
from jax_unmask.runtime.accelerators import Accelerator
from jax_unmask.settings import ConfigError

_SHOWN_SECONDS = 1e-4
_SHOWN_KINDS = 6
_SHOWN_LAYOUTS = 4
_USEFUL = 0.95
_ROLLOUTS = ("rollout_fsdp", "rollout_tensor")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory, communication and time of one training step on each device.

    Attributes:
        config, denoiser: what is planned.
        devices, device: how many devices, and their type; None for the devices of this machine.
        mesh, rollout_mesh: devices along each axis, in training and in rollouts.
        denoiser_parameters, trained_parameters: numbers of parameters.
        lasting_bytes: what a device holds from step to step, by name.
        records_bytes: what a device holds between the programs of a step; with experts their rows
            count twice, by themselves and merged into the groups.
        compiler: that compiled the programs; None for this machine's devices or virtual CPUs.
        programs, work: the programs of a step, and its matrix products.
        estimate: its memory before anything is compiled.
        layouts: for rollouts, with the seconds of a sequence in each, the fastest first.
    """

    config: RunSettings
    denoiser: denoisers.DenoiserConfig
    devices: int
    mesh: dict[str, int]
    rollout_mesh: dict[str, int]
    device: Accelerator | None
    compiler: Compiler | None
    denoiser_parameters: int
    trained_parameters: int
    lasting_bytes: dict[str, int]
    records_bytes: int
    programs: tuple[Program, ...]
    work: Work
    estimate: Estimate
    layouts: tuple[tuple[tuple[int, ...], float], ...] = ()

    @property
    def widened_bytes(self) -> int:
        """Float32 copies of bfloat16 weights among the temporaries of each program.

        XLA has no bfloat16 matrix products for CPUs, and converts all matrices before the loop over
        the steps; other devices make no such copies.
        """
        if not self._is_widened(self.denoiser.param_dtype):
            return 0
        table = 0
        if not self.denoiser.tie_embeddings:
            table = self.denoiser.vocab_size * self.denoiser.hidden_size
        return 4 * (self.denoiser_parameters - table) // self.weight_shards

    @property
    def weight_shards(self) -> int:
        """Shards of each of the denoiser's matrices in rollouts."""
        return self.rollout_mesh["fsdp"] * self.rollout_mesh["tensor"]

    @property
    def peak_bytes(self) -> int | None:
        """Most memory that a step needs on a device at one time, by the programs compiled."""
        return self._most(0)

    @property
    def needed_bytes(self) -> int | None:
        """Bytes of the peak without the float32 copies that only CPUs make."""
        return self._most(self.widened_bytes)

    def _most(self, copies: int) -> int | None:
        temporaries = [
            program.temporary_bytes - copies * program.has_denoiser
            for program in self.programs
            if program.temporary_bytes is not None
        ]
        if not temporaries:
            return None
        return sum(self.lasting_bytes.values()) + self.records_bytes + max(temporaries)

    @property
    def fits(self) -> bool | None:
        """Whether that fits the devices, by estimate unless compiled; None for CPUs."""
        if self.device is None:
            return None
        if self.needed_bytes is None:
            return self.estimate.fits(self.device.memory_bytes)
        return self.needed_bytes <= USABLE * self.device.memory_bytes

    @property
    def refusal(self) -> ConfigError | None:
        """The error that says why no step can run on these devices; None if one might."""
        if self.device is None:
            return None
        memory, needed = self.device.memory_bytes, self.needed_bytes
        return self.estimate.refusal(self.config, memory, self.weight_shards, needed)

    def table(self) -> str:
        """The plan as text."""
        return "\n".join(
            [
                *self._what(),
                "",
                *self._compared(),
                *self._slots(),
                *self._memory(),
                "",
                *self._traffic(),
                *self._operations(),
                *self._time(),
            ]
        )

    def _what(self) -> list[str]:
        config, denoiser = self.config, self.denoiser
        sampling = config.sampling
        length = sampling.gen_length
        rows = f"step      {config.rows} rows of {config.task.prompt_length} + {length} tokens"
        if sampling.block_length < length:
            rows += f", blocks of {sampling.block_length}"
        name = jax.devices()[0].device_kind if self.device is None else self.device.name
        mesh = _times(self.mesh)
        if self.rollout_mesh != self.mesh:
            mesh += f", in rollouts {_times(self.rollout_mesh)}"
        return [
            f"denoiser  {config.model.path}: {denoiser.num_layers} layers, width "
            f"{denoiser.hidden_size}, {denoiser.vocab_size:,} tokens, "
            f"{jnp.dtype(denoiser.param_dtype).name}",
            f"          {self.denoiser_parameters:,} parameters",
            f"trained   {self.trained_parameters:,} parameters ({config.recipe})",
            rows,
            f"devices   {self.devices} x {name}: mesh {mesh}",
            *self._compiled(),
        ]

    def _compared(self) -> list[str]:
        """The fastest layouts of rollouts, and that of this plan."""
        if not self.layouts:
            return []
        taken = tuple(self.rollout_mesh.values())
        lines = ["layouts of rollouts, seconds of a sequence on all devices, an estimate"]
        for place, (layout, seconds) in enumerate(self.layouts):
            if place < _SHOWN_LAYOUTS or layout == taken:
                name = _times(dict(zip(meshes.AXES, layout, strict=True)))
                ending = "   this plan" if layout == taken else ""
                shown = f"{seconds:.4f} s" if seconds >= 1e-3 else _short(seconds)
                lines.append(f"  {name:<46}{shown:>11}{ending}")
        return [*lines, ""]

    def _slots(self) -> list[str]:
        """The slots of a device, and the share of the forwards that they leave useful."""
        config, device = self.config, self.device
        if device is None or not isinstance(config, RollingSettings):
            return []
        prompt, nfe = config.task.prompt_length, self.work.nfe
        groups = self.rollout_mesh["data"] * self.rollout_mesh["fsdp"]
        together = config.rollout.rows // config.rollout.batches
        found = []
        for rows in (together, 8 * together):
            slots = speed.slots_here(config.sampling, prompt, rows, groups, device)
            found.append((slots, speed.useful_share(rows // groups, slots, groups, nfe)))
        (slots, share), (_, better) = found
        where = f"{together // groups} in {slots} slot" + "s" * (slots > 1)
        line = f"  {'useful forwards, an estimate':<46}{share:>11.0%}"
        if share < _USEFUL and better > share:
            line += f"   {better:.0%} with {8 * together:,} rows in a rollout"
        lines = [
            f"rows of each of {groups} shards: {where}, and {nfe} ± {speed.VARIES * nfe:.0f} "
            "forwards that each needs",
            line,
        ]
        return [*lines, ""]

    def _compiled(self) -> list[str]:
        if self.device is None or self.peak_bytes is None:
            return []
        if self.compiler is not None:
            return [f"compiler  {self.compiler.name}"]
        return [f"compiler  XLA for CPUs: {compilers.missing(self.device)}"]

    def _is_widened(self, dtype: Any) -> bool:
        """Whether numbers of a type are computed in float32, as on CPUs."""
        is_cpu = self.compiler is None and jax.default_backend() == "cpu"
        return is_cpu and jnp.dtype(dtype).itemsize < 4

    def _memory(self) -> list[str]:
        lines = ["memory on each device"]
        lines += [_line(name, size) for name, size in self.lasting_bytes.items()]
        lines.append(_line("between rollout and update", self.records_bytes))
        for program in self.programs:
            if program.temporary_bytes is None:
                continue
            line = _line(f"temporaries of {program.name}", program.temporary_bytes)
            lines.append(f"{line}   compiled in {program.seconds_to_compile:.1f} s")
            if program.argument_bytes is not None and program.shaped_bytes is not None:
                line = _line("  its arguments, by the compiler", program.argument_bytes)
                lines.append(f"{line}   {terminal.size_text(program.shaped_bytes)} by their shapes")
            if program.peak_bytes is not None:
                lines.append(_line("  its peak, by the compiler", program.peak_bytes))
        needed, ending = self.needed_bytes, ""
        if self.peak_bytes is None or needed is None:
            for name in ("rollout", "update"):
                if size := getattr(self.estimate, name):
                    lines.append(_line(f"temporaries of {name}, an estimate", size))
            needed = self.estimate.total
            lines.append(_line("peak, an estimate", needed))
            ending = ", by estimate; --compile measures it"
        else:
            lines.append(_line("peak", self.peak_bytes))
            if copies := self.peak_bytes - needed:
                lines.append(_line("  of it float32 copies of weights, CPUs only", copies))
        if self.device is not None:
            share, size = needed / self.device.memory_bytes, self.device.memory_bytes
            verdict = "fits" if self.fits else "DOES NOT FIT"
            if not self.fits and ending and self.estimate.lasting < USABLE * size:
                verdict = "MAY NOT FIT"
            where = f"the {size / accelerators.GB:.0f} GB of a {self.device.name}"
            lines.append(f"  {verdict}: {share:.0%} of {where}{ending}")
        return lines

    def _traffic(self) -> list[str]:
        if self.devices == 1 or self.peak_bytes is None:
            return []
        lines = ["collectives, bytes on each device"]
        for program in self.programs:
            for each in program.rounds:
                line = _line(f"{program.name}, {each.name}", each.bytes)
                if each.exposed and self.compiler is not None:
                    line += f"   {each.exposed / max(each.bytes, 1):.0%} of it exposed"
                lines.append(line)
                # Weights are gathered in the type of the products; on CPUs that is float32.
                if each.wide and self._is_widened(self.denoiser.dtype):
                    lines.append(_line("  of it float32 for bfloat16, CPUs only", each.wide // 2))
        return [*lines, ""]

    def _operations(self) -> list[str]:
        device = self.device
        if self.compiler is None or device is None or self.peak_bytes is None:
            return []
        how = f"{device.clock_ghz} GHz assumed, by the compiler's cycles"
        if not device.clock_ghz:
            speeds = f"{device.flops / 1e12:.0f} TFLOP/s or {device.bandwidth / 1e12:.2f} TB/s"
            how = f"{speeds}, whichever takes longer"
        lines = [f"time on each device, an estimate: {how}"]
        if device.clock_ghz and compilers.has_little_effort():
            lines[0] += "; too long, since compiled with little effort"
        if self.devices > 1:
            lines[0] += f"; {device.link / 1e9:.0f} GB/s received"
        for program in self.programs:
            for each in program.rounds:
                if each.longest(device.link) < _SHOWN_SECONDS:
                    continue
                low, high = each.shortest(device.link), each.longest(device.link)
                line = f"  {program.name + ', ' + each.name:<46}{_short(low):>12}"
                if high > 1.01 * low:
                    line += f", {_short(high)} were nothing overlapped"
                lines.append(line)
                largest = list(each.seconds.items())[:_SHOWN_KINDS]
                lines += [f"    {kind:<44}{_short(value):>12}" for kind, value in largest]
        return [*lines, ""]

    def _time(self) -> list[str]:
        if self.device is None:
            return []
        rollout, update = self.work.seconds(self.device, self.devices)
        lines = [f"time of a step at {ASSUMED_UTILISATION:.0%} of the peak, an estimate"]
        if self.work.nfe:
            lines.append(f"  rollout, {self.work.nfe} forwards per row {_seconds(rollout):>24}")
        if self.work.update:
            lines.append(f"  update {_seconds(update):>48}")
        return lines


def plan(
    config: ConfigDict,
    *,
    compile_programs: bool = False,
    only: str = "",
    device: Accelerator | None = None,
    compiler: Compiler | None = None,
    nfe: int | None = None,
) -> Plan:
    """Plans a training step from shapes, for a mesh over all devices that JAX shows.

    Args:
        config: a full config, see `recipes.config`.
        compile_programs: compile the programs of a step for these devices.
        only: those alone with this in their name.
        device: the accelerator that they stand in for; None for this machine's own devices.
        compiler: compiles them, for its devices; None for the compiler of those that JAX shows.
        nfe: forwards that a row is assumed to need, for the estimate of time and the mesh.
    """
    with contextlib.nullcontext() if compiler is None else compiler.active():
        settings, recipe = recipes.read(config, device, nfe=nfe), recipes.find(config.recipe)
        if recipe.blueprint is None:
            remedy = "Give another, or define methods blueprint and work in its class"
            raise ConfigError("recipe", config.recipe, "it cannot be planned", remedy)
        shape = denoiser_shape(settings)
        check_fits(shape, settings.task.prompt_length, settings.sampling.gen_length)
        placement = placements.from_config(settings)
        sharding.check_mesh(shape, placement.mesh)
        blueprint = recipe.blueprint(settings, shape, placement)
        timed = device if compiler is not None else None
        options = None if compiler is None else compiler.options
        programs = []
        for traced in blueprint.programs:
            is_compiled = compile_programs and only in traced.name
            what = f"{traced.name} for {len(accelerators.devices())} devices"
            announced = compilation.announced(f"{what} with {settings.model.path}")
            with (
                announced if is_compiled else contextlib.nullcontext(),
                _room(settings, traced.name),
            ):
                programs.append(
                    Program.of(traced, compiled=is_compiled, device=timed, options=options)
                )
        layouts: list[Any] = []
        if device is not None and len(accelerators.devices()) > 1 and settings.rows_at_once:
            layouts = compare_rollouts(settings, shape, device, nfe)
        return Plan(
            config=settings,
            denoiser=shape,
            devices=len(accelerators.devices()),
            mesh=_axes(placement),
            rollout_mesh=_axes(placements.for_rollouts(settings)),
            device=device,
            compiler=compiler,
            denoiser_parameters=denoisers.count_params(shape),
            trained_parameters=sum(leaf.size for leaf in jax.tree.leaves(blueprint.trained)),
            lasting_bytes={
                name: bytes_per_device(tree) for name, tree in blueprint.lasting.items()
            },
            records_bytes=bytes_per_device(blueprint.passing),
            programs=tuple(programs),
            work=recipe.work(settings, shape, nfe),
            estimate=estimate(settings, shape, placement, blueprint),
            layouts=tuple(layouts),
        )


@contextlib.contextmanager
def _room(settings: RunSettings, program: str) -> Iterator[None]:
    """Says as an error of the config that the compiler finds no room for a program."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        keys = " or ".join(f"`{key}`" for key in (settings.update_key, settings.rollout_key) if key)
        raise ConfigError(
            "model.path",
            settings.model.path,
            f"the compiler has no room for the program {program!r} ({str(error).splitlines()[0]})",
            f"Plan for more devices, or lower {keys or 'what is alive at one time'}",
        ) from error


def stand_in(
    text: str, *, real: bool = True, quantized: bool = False
) -> tuple[Accelerator, Compiler | None]:
    """The accelerators that `--devices` asks for, and their compiler where it is installed.

    JAX shows as many CPU devices where there is none. To be called before JAX is used.

    Args:
        text: such as "v5e-16".
        real: look for the compiler.
        quantized: whether the denoiser's weights have one byte.

    Raises:
        ValueError: there is no such accelerator.
    """
    device, count = accelerators.parse(text)
    jax.config.update("jax_platforms", "cpu")
    compiler = compilers.find(device, count, quantized) if real else None
    if compiler is None:
        jax.config.update("jax_num_cpu_devices", count)
    return device, compiler


def _axes(placement: placements.Placement) -> dict[str, int]:
    mesh = placement.mesh
    return dict.fromkeys(meshes.AXES, 1) if mesh is None else dict(mesh.shape)


def _times(mesh: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items())


def _line(name: str, size: float) -> str:
    return f"  {name:<46}{terminal.size_text(size):>12}"


def _short(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _seconds(seconds: float) -> str:
    if seconds < 0.1:
        return _short(seconds)
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def main(argv: list[str]) -> None:
    """Runs the command."""
    command_line.begin(argv)
    values = flags.FLAGS
    with command_line.clear_errors():
        device, compiler = None, None
        if values.devices:
            quantized = command_line.is_quantized(values.config)
            device, compiler = stand_in(values.devices, real=values.compile, quantized=quantized)
        found = plan(
            values.config,
            compile_programs=values.compile,
            only=values.only,
            device=device,
            compiler=compiler,
            nfe=values.nfe,
        )
        print(found.table(), flush=True)
        terminal.conclude(verdict(found, sys.argv[1:]))
        if found.refusal is not None:
            raise found.refusal


def verdict(found: Plan, arguments: Sequence[str]) -> list[str]:
    """Whether it fits, and the command that measures it or begins the training."""
    device, size = found.device, found.needed_bytes
    is_compiled = size is not None
    size = found.estimate.total if size is None else size
    name = jax.devices()[0].device_kind if device is None else device.name
    fits = "" if found.fits is None else ("It fits: " if found.fits else "It does not fit: ")
    how = "as compiled" if is_compiled else "by estimate"
    line = f"{fits}{terminal.size_text(size)} on each of {found.devices} x {name}, {how}."
    then = ["plan", *arguments, "--compile"]
    if is_compiled:
        then = ["train", *(each for each in arguments if re.match("--?config", each))]
        if any(re.match("--?nfe", each) for each in arguments):  # Training would assume its own.
            sizes = ((key, getattr(found.config.mesh, key)) for key in _ROLLOUTS)
            chosen = [f"--config.mesh.{key}={size}" for key, size in sizes if size]
            then += [each for each in chosen if each not in then]
    return terminal.verdict([line], then=then if found.refusal is None else ())


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of the command."""
    command_line.define_config_flag(values)
    flags.DEFINE_string(
        "devices", None, "What to plan for, such as v5e-16 or h100x8.", flag_values=values
    )
    flags.DEFINE_bool(
        "compile", False, "Compile the programs of a step, and measure them.", flag_values=values
    )
    flags.DEFINE_string(
        "only", "", "With --compile: the programs with this in their name.", flag_values=values
    )
    flags.DEFINE_integer(
        "nfe", None, "Forwards per row for the estimates of time.", 1, flag_values=values
    )
