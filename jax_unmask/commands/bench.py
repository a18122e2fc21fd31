"""Measures speed: `python -m jax_unmask.bench --preset=tiny --batch_sizes=1,8,64`."""

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import logging
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jax_unmask import denoisers, policies, tasks
from jax_unmask.benchmarks import breakdown, hardware, reference, speed, subjects, tables
from jax_unmask.benchmarks.compiled_flops import compiled_flops
from jax_unmask.commands import command_line
from jax_unmask.denoisers import DenoiserConfig, Tokenizer, hub
from jax_unmask.denoisers.pretrained import read_config
from jax_unmask.denoisers.quantization import TYPES, quantize_params
from jax_unmask.environment.bundle import read_model
from jax_unmask.recipes.experiments import changed_config
from jax_unmask.rollout import (
    Cache,
    Prompts,
    RolloutSettings,
    check_rollout,
    parse_cache,
    scored_positions,
)
from jax_unmask.rollout.caching import NONE
from jax_unmask.rollout.flops import RolloutFlops
from jax_unmask.runtime import compilation, terminal
from jax_unmask.runtime.compilation import CompileTimes
from jax_unmask.runtime.files import atomic_write
from jax_unmask.runtime.progress import Jobs
from jax_unmask.settings import FlagError, naming
from jax_unmask.shipped import Lengths, shipped_lengths, shipped_models

_EPILOG = """\
three things can be measured:

  rollouts (--model or --preset): compile time, time per rollout and per forward, memory, and the
  share of the peak speed of matrix products, which is measured in the same run. FLOPs are counted
  exactly from shapes: matrix products of the denoiser only. Times are medians over the repeats,
  after a rollout that is not counted; in brackets stand the fastest and the slowest. With several
  --cache, each is measured at every batch size; cost is what a row's forwards cost, in forwards
  over its whole sequence.

  another implementation beside ours (--reference=FILE.py with --model or --preset): both fill the
  same canvases with the same weights, in turns, in one process. The file defines

    load(model_dir) -> model
    generate(model, prompts, *, gen_length, block_length, policy, settings) -> (tokens, nfe)

  where model_dir is a Hugging Face directory, prompts a list of lists of token ids without
  padding, policy the string of --policy and settings a dict of its numbers; tokens is [B,
  gen_length] and nfe a number or [B], on the host. On a GPU, JAX then takes memory as it needs
  it, so that both fit (unless XLA_PYTHON_CLIENT_PREALLOCATE says otherwise).

  a training step (--breakdown --config=configs/NAME.py, --config.KEY=VALUE to change it): shares of
  rollout, reward and update.

example:
  python -m jax_unmask.bench --model=sudoku --task=sudoku
"""
_RANDOM_PROMPT_LENGTH = 64
logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = command_line.Parser(
        prog="python -m jax_unmask.bench",
        description="Measures the speed of rollouts and training steps.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = described.add_argument
    shipped = ", ".join(shipped_models()) or "none"
    add("--model", help=f"a shipped model ({shipped}), a directory, or a hub name")
    add("--preset", help=f"random weights of a shape: {', '.join(subjects.PRESETS)}")
    named = f"NAME:SETTING=VALUE,... (names: {', '.join(tasks.posable())})"
    add("--task", help=f"prompts of its test split, {named}; default: random tokens")
    add("--data", help="directory of the task's data, for tasks that read files")
    add(
        "--prompt_length",
        type=int,
        help="prompt tokens; default: those of the task's longest prompt, of the preset or the "
        f"shipped model, or {_RANDOM_PROMPT_LENGTH} random ones",
    )
    add("--gen_length", type=int, help="canvas length; default: the preset's or shipped model's")
    add("--block_length", type=int, help="block length; default: the preset's or shipped model's")
    add(
        "--policy",
        default="top_confidence:tokens_per_step=1",
        help="NAME:SETTING=VALUE,... or learned:DIR; default: %(default)s",
    )
    add("--batch_sizes", default="1,8,64", help="rows per rollout; default: %(default)s")
    add(
        "--slots",
        type=int,
        help="rows that the denoiser serves at one time; a row that is done leaves its slot to one "
        "that waits; default: all of the batch",
    )
    add(
        "--cache",
        action="append",
        help="none, prefix, dual or block, with settings as in dual:refresh_every=8; give it "
        "several times to compare; default: none",
    )
    add(
        "--count",
        action="store_true",
        help="also count the operations of a step by the compiler (compiles a few small programs)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and computation; default: as stored, or the preset's",
    )
    add("--quantization", choices=list(TYPES), help="of the matrices of the layers; default: none")
    add(
        "--vocab_chunk",
        type=int,
        default=16384,
        help="vocabulary entries whose logits exist at one time; default: %(default)s",
    )
    add("--repeats", type=int, default=5, help="timed rollouts; default: %(default)s")
    add("--seed", type=command_line.seed, default=0, help="of weights, prompts, draws; default: 0")
    add("--reference", type=pathlib.Path, help="Python file of another implementation, see below")
    add("--breakdown", action="store_true", help="time the phases of a training step, see below")
    add("--config", help="experiment file for --breakdown")
    add("--steps", type=int, default=5, help="timed training steps; default: %(default)s")
    add("--json", type=pathlib.Path, help="also write everything to this file")
    return described


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args, overrides = parser().parse_known_args(arguments)
    command_line.set_up_logging()
    # Without the compile cache: the time to compile is measured.
    asked = any(each.startswith("--config.model.quantization=") for each in overrides)
    compilation.choose_flags(asked or args.quantization is not None)
    with command_line.clear_errors(args):
        _check(args, overrides)
        command = shlex.join(["python", "-m", "jax_unmask.bench", *arguments])

        def keep(found: dict[str, Any]) -> None:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            record = {"command": command, "date": now, "environment": hardware.describe()}
            if args.json is not None:
                atomic_write(args.json, json.dumps(record | found, indent=1) + "\n")

        record, text = _run(args, overrides, keep)
        sys.stdout.write(text + "\n\n")
        terminal.conclude(verdict(record, args, arguments))


def verdict(
    record: dict[str, Any], args: argparse.Namespace, arguments: Sequence[str]
) -> list[str]:
    """The fastest case, and a command that uses the subject."""
    places = "" if args.json is None else f"Record: {args.json}"
    if args.breakdown:
        measured = record["breakdown"]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in measured["shares"].items())
        line = f"{measured['seconds_per_step']:.3g} s per step: {shares}"
        settings = [each for each in arguments if each.startswith("--config")]
        return terminal.verdict([line], places=places, then=["train", *settings])
    rows = record["rollouts"]
    best, first = max(rows, key=lambda row: row["sequences_per_second"]), rows[0]
    found = [
        f"Fastest: batch {best['batch_size']}, cache {best['cache']}: "
        f"{best['sequences_per_second']:.4g} sequences/s, {best['tokens_per_second']:.4g} tokens/s"
    ]
    if best is not first:
        ratio = best["sequences_per_second"] / first["sequences_per_second"]
        found.append(f"{ratio:.2f} x batch {first['batch_size']}, cache {first['cache']}")
    if comparisons := record.get("comparisons"):
        ratio = max(each["speedup"] for each in comparisons)
        found.append(f"Up to {ratio:.2f} x as fast as {record['reference']}")
    then: list[str] = []
    if args.model is not None:
        shape = [f"--{n}={getattr(args, n)}" for n in ("policy", "gen_length", "block_length")]
        task = args.task or (args.model if args.model in shipped_models() else None)
        posed = ["--prompt=..."]
        if task is not None:
            posed = [f"--task={task}", *tasks.shown_problem(task, args.data)]
        data = [] if args.data is None else [f"--data={args.data}"]
        then = ["generate", f"--model={args.model}", *shape, *posed, *data]
    return terminal.verdict(found, places=places, then=then)


def _check(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    for override in overrides:
        if not (args.breakdown and override.startswith("--config.")):
            raise ValueError(f"unknown argument {override}; --help lists all")
    if args.breakdown:
        if args.config is None:
            raise ValueError("--breakdown times an experiment: give --config=FILE.py")
        command_line.check_count(args, "steps")
        for name in ("model", "preset", "reference", "task"):
            if (value := getattr(args, name)) is not None:
                problem = "with --breakdown the config says it"
                raise FlagError(name, value, problem, "Leave it out")
        return
    if args.config is not None:
        remedy = "Give both, or --model or --preset"
        raise FlagError("config", args.config, "it is for --breakdown", remedy)
    if (args.model is None) == (args.preset is None):
        raise ValueError("give one of --model=NAME and --preset=NAME (or --breakdown)")
    for name in ("repeats", "prompt_length", "vocab_chunk", "slots"):
        command_line.check_count(args, name)
    if args.task is not None and args.preset is not None:
        problem = "it needs a tokenizer, which a --preset lacks"
        raise FlagError("task", args.task, problem, "Leave it out, or give --model")
    if args.task is not None:
        command_line.parse_task(args)
    known = args.model is None or args.model in shipped_models()
    if not known and None in (args.gen_length, args.block_length):
        problem = "it is no shipped model, which knows its canvas"
        raise FlagError("model", args.model, problem, "Give --gen_length and --block_length")


def _run(
    args: argparse.Namespace, overrides: Sequence[str], keep: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], str]:
    """The measurements, as plain values and as text.

    `keep` gets the values so far whenever there are new ones.
    """
    if args.breakdown:
        words = [override.removeprefix("--config.") for override in overrides]
        with naming("config", args.config):
            config, _ = changed_config(args.config, words)
        measured = breakdown.measure_breakdown(config, args.steps, CompileTimes())
        timed = {"config": args.config, "breakdown": dataclasses.asdict(measured)}
        keep(timed)
        return timed, tables.breakdown_text(measured)
    module = None
    if args.reference is not None:
        # Before JAX starts its backend, which would otherwise take most of a GPU's memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        module = reference.import_reference(args.reference)
    # In ascending order, so that the process's peak memory is that of the batch just done.
    batch_sizes = sorted(set(command_line.numbers(args, "batch_sizes", int, least=1)))
    caches = []
    for text in args.cache or (NONE,):
        with naming("cache", text):
            caches.append(parse_cache(text))
    if module is not None and None not in caches:
        problem = "--reference is compared with rollouts without a cache"
        raise FlagError("cache", args.cache, problem, "Add --cache=none, or leave out --cache")
    _complete_lengths(args)
    settings = RolloutSettings(
        gen_length=args.gen_length,
        block_length=args.block_length,
        vocab_chunk=args.vocab_chunk,
        slots=args.slots or 0,
    )
    environment = settings.environment
    if args.model is not None:
        environment["denoiser"] = args.model
    if len(caches) > 1:
        environment.pop("cache")
    elif caches[0] is not None:
        environment["cache"] = str(caches[0])
    with naming("policy", args.policy):
        policy, policy_params = policies.parse_policy(args.policy, environment=environment)
    tokenizer = None
    if args.model is None:
        shape = subjects.find_preset(args.preset).config
    else:
        with naming("model", args.model):
            shape = read_config(hub.local_directory(args.model, weights=False))
            denoisers.check_weights(args.model)
            if args.task is not None:
                shape, tokenizer = read_model(args.model)
    for cache in caches:
        cached = dataclasses.replace(settings, cache=cache)
        check_rollout(args.policy, policy, policy_params, shape, cached)
    prompts = _prompts(args, shape, tokenizer, max(batch_sizes))
    _check_length(shape.max_length, prompts.tokens.shape[1], settings)
    if args.model is not None:
        subject = subjects.load_subject(
            args.model, args.dtype, with_tokenizer=args.task is not None
        )
    else:
        if args.dtype is not None:
            shape = dataclasses.replace(shape, dtype=args.dtype, param_dtype=args.dtype)
        subject = subjects.random_subject(args.preset, shape, seed=args.seed)
    if args.quantization is not None:
        quantized = quantize_params(subject.params, args.quantization)
        subject = dataclasses.replace(subject, params=quantized)
    config = subject.denoiser.config

    peak = hardware.measure_matmul_peak(config.dtype)
    compile_times = CompileTimes()
    rows: list[speed.Speed] = []
    comparisons: list[reference.ReferenceSpeed] = []
    loaded: contextlib.AbstractContextManager[reference.Reference | None] = (
        contextlib.nullcontext()
        if module is None
        else reference.load_reference(args.reference, module, subject, args.policy, policy_params)
    )
    counted: dict[Cache | None, RolloutFlops | None] = {}
    if args.count:
        prompt_length = prompts.tokens.shape[1]
        for cache in caches:
            cached = dataclasses.replace(settings, cache=cache)
            scored = scored_positions(policy, settings)
            counted[cache] = compiled_flops(config, cached, prompt_length, scored)
    shown = dataclasses.asdict(config)

    def so_far() -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": subject.name,
            "denoiser": shown | {name: str(shown[name]) for name in ("dtype", "param_dtype")},
            "quantization": args.quantization,
            "policy": args.policy,
            "settings": dataclasses.asdict(settings),
            "flops": "exact count of the denoiser's matrix products",
            "matmul_peak": dataclasses.asdict(peak),
            "rollouts": [dataclasses.asdict(row) for row in rows],
        }
        if comparisons:
            found["reference"] = str(args.reference)
            found["comparisons"] = [
                {"batch_size": batch} | dataclasses.asdict(comparison)
                for batch, comparison in zip(batch_sizes, comparisons, strict=False)
            ]
        return found

    with loaded as other:
        cases = list(itertools.product(batch_sizes, caches))
        jobs = Jobs(len(cases))
        for number, (batch, cache) in enumerate(cases, start=1):
            row, comparison = speed.measure_speed(
                subject,
                policy,
                policy_params,
                jax.tree.map(lambda leaf, batch=batch: leaf[:batch], prompts),
                dataclasses.replace(settings, cache=cache, slots=args.slots or batch),
                repeats=args.repeats,
                seed=args.seed,
                peak=peak,
                compile_times=compile_times,
                reference=other if cache is None else None,
                compiled_flops=counted.get(cache),
            )
            told = (
                f"batch {batch}, cache {row.cache}: {row.seconds_per_rollout:.4g} s per rollout, "
                f"{row.tokens_per_second:.4g} tokens/s, {row.share_of_matmul_peak:.0%} of the peak"
            )
            logger.info("%s", jobs.done(number, told))
            rows.append(row)
            comparisons += [] if comparison is None else [comparison]
            keep(so_far())
    return so_far(), tables.rollouts_text(args.policy, subject, settings, peak, rows, comparisons)


def _complete_lengths(args: argparse.Namespace) -> None:
    """Fills in the lengths that were not given, from the preset or the shipped model."""
    made_for: subjects.Preset | Lengths | None = None
    if args.preset is not None:
        made_for = subjects.find_preset(args.preset)
    elif args.model in shipped_models():
        made_for = shipped_lengths(args.model)
    # The task determines the length of its prompts.
    for name in ("gen_length", "block_length", *([] if args.task else ["prompt_length"])):
        if made_for is not None and getattr(args, name) is None:
            setattr(args, name, getattr(made_for, name))


def _prompts(
    args: argparse.Namespace, shape: DenoiserConfig, tokenizer: Tokenizer | None, count: int
) -> Prompts:
    if tokenizer is not None:
        with command_line.naming_task(args):
            prompts = subjects.task_prompts(
                args.task, tokenizer, count, args.prompt_length, data=args.data
            )
        return prompts
    length = _RANDOM_PROMPT_LENGTH if args.prompt_length is None else args.prompt_length
    return subjects.random_prompts(shape, count, length, seed=args.seed)


def _check_length(longest: int, prompt_length: int, settings: RolloutSettings) -> None:
    if prompt_length + settings.gen_length > longest:
        problem = (
            f"with a canvas of {settings.gen_length} tokens the model's max_length={longest} is "
            "exceeded"
        )
        raise FlagError("prompt_length", prompt_length, problem, "Lower it or --gen_length")
