"""Runs models and policies on the tasks of EleutherAI's lm-evaluation-harness.

`python -m jax_unmask.harness --model=DIR --policy=threshold:threshold=0.9 --tasks=gsm8k,arc_easy`

Needs the extra: `pip install 'jax_unmask[harness]'`. From Python,
`evaluation.harness_model.HarnessModel` is a model for `lm_eval.simple_evaluate`.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jax_unmask import policies
from jax_unmask.commands import command_line
from jax_unmask.evaluation.harness_settings import HarnessSettings
from jax_unmask.runtime import terminal
from jax_unmask.runtime.files import atomic_write
from jax_unmask.settings import FlagError, naming


def parser() -> argparse.ArgumentParser:
    """The command line."""
    described = command_line.Parser(
        prog="python -m jax_unmask.harness",
        description="Runs a model under an unmasking policy on tasks of lm-evaluation-harness.",
    )
    add = described.add_argument
    add("--model", required=True, help="as for jax_unmask.generate: a shipped name, DIR, hub name")
    add("--tasks", required=True, help="names of the harness's tasks, separated by commas")
    command_line.add_settings(add, HarnessSettings())
    add("--chat", action="store_true", help="apply the tokenizer's chat template")
    add("--num_fewshot", type=int, help="default: the task's own")
    add("--limit", type=int, help="only the first problems of each task")
    add("--include_path", help="directory with further tasks (YAML files)")
    add("--dtype", choices=("float32", "bfloat16"), help="of weights and computation")
    add("--output", metavar="FILE", help="write the results as JSON")
    return described


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with command_line.parsed(parser(), arguments) as args:
        results = _run(args)
        if args.output is not None:
            atomic_write(args.output, json.dumps(results, indent=2, default=str) + "\n")
        terminal.conclude(verdict(results, args))


def verdict(results: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """The first metric of each task, and a command that writes as was measured."""
    found = []
    for task, metrics in results["results"].items():
        numbers = [(n, v) for n, v in metrics.items() if isinstance(v, float) and "stderr" not in n]
        found += [f"{task}: {name.partition(',')[0]} {value:.3f}" for name, value in numbers[:1]]
    if results["nfe_mean"] is not None:
        found.insert(0, f"{args.policy}: {results['nfe_mean']:.2f} forwards per text")
    return terminal.verdict(
        found,
        places="" if args.output is None else f"Results: {args.output}",
        then=[
            "generate",
            *(f"--{n}={getattr(args, n)}" for n in ("model", "policy", "gen_length")),
            *(f"--block_length={args.block_length}", "--chat" if args.chat else None),
            "--prompt=What is 17 * 3?",
        ],
    )


def _run(args: argparse.Namespace) -> dict[str, Any]:
    # Mistakes that show without the harness and the model are refused before loading them.
    settings = command_line.given(HarnessSettings, args)
    with naming("policy", settings.policy):
        policies.parse_policy(settings.policy, environment=settings.environment(args.model))
    if args.include_path is not None and not pathlib.Path(args.include_path).is_dir():
        raise FlagError("include_path", args.include_path, "it is no directory", "Correct it")
    lm_eval = require()
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from jax_unmask.evaluation.harness_model import HarnessModel

    manager = TaskManager(include_path=args.include_path)
    names = [name for name in args.tasks.split(",") if name]
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        problem = f"lm-evaluation-harness has no task {', '.join(unknown)}"
        remedy = "`lm-eval ls tasks` lists them, --include_path adds a directory of your own"
        raise FlagError("tasks", args.tasks, problem, remedy)
    model = HarnessModel.load(args.model, dtype=args.dtype, **vars(settings))
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=names,
        task_manager=manager,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        apply_chat_template=args.chat,
        log_samples=False,
        bootstrap_iters=0,
    )
    assert found is not None  # Only processes other than the first get nothing.
    sys.stdout.write(make_table(found) + "\n")
    if model.sequences:
        sys.stdout.write(
            f"{model.sequences} texts, {model.forwards / model.sequences:.2f} denoiser forwards "
            "per text (NFE)\n"
        )
    sys.stdout.flush()
    return {
        "results": found["results"],
        "model": args.model,
        "policy": args.policy,
        "nfe_mean": model.forwards / model.sequences if model.sequences else None,
    }


def require() -> Any:
    """The package `lm_eval`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise ImportError(
            "lm-evaluation-harness is not installed: pip install 'jax_unmask[harness]', or "
            f"pip install lm-eval ({error})"
        ) from error
    return lm_eval
