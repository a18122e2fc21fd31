"""Calibrates a policy for requests of forwards: `python -m jax_unmask.calibrate`."""

import dataclasses
import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jax_unmask import notation, policies, recipes, shipped, tasks
from jax_unmask.commands import command_line
from jax_unmask.commands.eval import for_evaluation
from jax_unmask.environment.bundle import load_bundle, load_denoiser_config
from jax_unmask.evaluation.calibrate import CalibrationSettings
from jax_unmask.evaluation.calibrate import calibrate as count_forwards
from jax_unmask.policies.calibration import FILE, Calibration, load_calibrations, save_calibration
from jax_unmask.rollout import check_rollout
from jax_unmask.runtime import terminal
from jax_unmask.settings import FlagError, declared, naming

_NAME = re.compile(r"[\w.-]+")


def calibrate(
    config: ConfigDict,
    policy: str,
    *,
    name: str | None = None,
    **measured: Any,
) -> Calibration:
    """Measures a calibration and adds it to the policy's directory.

    Args:
        config: a full config, see `recipes.config`: denoiser, prompts, canvas, cache.
        policy: directory of the policy, with settings if wanted (`DIR,distribution=threshold`).
        name: of the calibration; by default TASK-CANVAS-BLOCK.
        measured: fields of `evaluation.calibrate.CalibrationSettings`.

    Raises:
        ValueError: the policy can't be told alpha, or a setting cannot be used.
    """
    chosen, config = CalibrationSettings(**measured), for_evaluation(config)
    config.eval.update(split=chosen.split, num_problems=chosen.prompts, validation_problems=0)
    settings = recipes.read(config)
    with naming("--policy", policy, "Give the directory of a policy, or a name"):
        spec = _spec(policy)
        learned, params = policies.parse_policy(spec.text)
    if not (isinstance(learned, policies.LearnedPolicy) and learned.alphas):
        problem = "it was trained for one alpha and takes the forwards that it takes"
        raise FlagError("policy", spec.target, problem, "Give a policy of a network with alphas")
    length = settings.sampling.gen_length
    block = chosen.block_length or settings.sampling.block_length
    if block > length or length % block:
        problem = f"it does not divide the canvas of {length}"
        raise FlagError("block_length", block, problem, "Give a divisor")
    target = policies.policy_directory(spec.target)
    if name is None:
        name = f"{settings.task.name.rpartition('.')[2]}-{length}-{block}"
        if shipped.is_shipped_policy(target) and name in load_calibrations(target):
            problem = f"{target.name} ships with the package and has a calibration {name}"
            remedy = f"Give another --name, --name={name} to replace it, or a copy of {target}"
            raise FlagError("name", None, problem, remedy)
    if not _NAME.fullmatch(name):
        problem = "it may hold letters, digits, '.', '_' and '-' only"
        raise FlagError("name", name, problem, "Choose another")
    shape = dataclasses.replace(settings.sampling, block_length=block)
    denoiser = load_denoiser_config(settings)
    check_rollout(spec.target, learned, params, denoiser, shape, key="--policy")
    bundle = load_bundle(settings, splits=(settings.eval.split,))
    found = count_forwards(
        settings, bundle, learned, params, name=name, block_length=block, points=chosen.points
    )
    save_calibration(target, found)
    return found


def table(calibration: Calibration) -> str:
    """A calibration as text."""
    found = zip(calibration.alphas, calibration.scales, calibration.nfe, strict=True)
    lines = [f"{'alpha':>10} {'scale':>10} {'forwards':>10}"]
    lines += [f"{alpha:>10.4g} {scale:>10.4g} {nfe:>10.3f}" for alpha, scale, nfe in found]
    return "\n".join([*lines, ""])


def verdict(calibration: Calibration, policy: str) -> list[str]:
    """The forwards that can be asked for, the file that says so, and a command that asks."""
    where, directory = calibration.environment, policies.policy_directory(policy)
    low, high = min(calibration.nfe), max(calibration.nfe)
    found = (
        f"From {low:.2f} to {high:.2f} forwards, on canvases of {where['gen_length']} in blocks of "
        f"{where['block_length']}: {policy},nfe=NUMBER"
    )
    asked = f"learned:{policy},nfe={(low * high) ** 0.5:.2g},calibration={calibration.name}"
    posed = [f"--task={where['task']}", *tasks.shown_problem(str(where["task"]))]
    return terminal.verdict(
        [found],
        places=f"Calibration {calibration.name}: {directory / FILE}",
        then=[
            "generate",
            *(f"--model={where['denoiser']}", f"--policy={asked}"),
            *(f"--{name}={where[name]}" for name in ("gen_length", "block_length")),
            *(posed if where["task"] in tasks.posable() else ["--prompt=..."]),
        ],
    )


def main(argv: list[str]) -> None:
    """Runs the command."""
    command_line.begin(argv)
    values = flags.FLAGS
    with command_line.clear_errors():
        if not values.policy:
            raise FlagError("policy", None, "it is missing", "Give the directory of a policy")
        found = calibrate(
            values.config,
            values.policy,
            name=values.name,
            **{each.key: values[each.key].value for each in declared(CalibrationSettings())},
        )
        print(table(found), end="")
        terminal.conclude(verdict(found, _spec(values.policy).target))


def _spec(policy: str) -> notation.Spec:
    """The notation of a learned policy, of which `learned:` may be left out."""
    return notation.parse(f"learned:{policy.removeprefix('learned:')}")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of the command."""
    command_line.define_config_flag(values)
    flags.DEFINE_string(
        "policy",
        None,
        "Directory of the policy, with settings if wanted: DIR or DIR,distribution=threshold.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "name",
        None,
        "Name of the calibration (default: TASK-CANVAS-BLOCK); replaces one of that name.",
        flag_values=values,
    )
    for each in declared(CalibrationSettings()):
        if each.choices:
            flags.DEFINE_enum(each.key, each.default, each.choices, each.help, flag_values=values)
        else:
            low, high = (None if bound is None else int(bound) for bound in (each.ge, each.le))
            flags.DEFINE_integer(each.key, each.default, each.help, low, high, flag_values=values)
