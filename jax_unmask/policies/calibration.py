"""Forwards that a policy takes by the alpha that it is told, in one environment.

A policy that can be told alpha is asked for a number of forwards through such a table. It is in the
policy's own directory, under the name of the environment. Beyond the alphas that it was trained
for, its probabilities are scaled.
"""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Mapping

import numpy as np

from jax_unmask import shipped
from jax_unmask.runtime.files import atomic_write
from jax_unmask.settings import SettingError

FILE = "calibrations.json"

Environment = Mapping[str, str | int | float]
"""An environment as far as it is known: some of the names of `Calibration.environment`."""

_CANVAS = ("gen_length", "block_length")
_FLAGS = {
    "gen_length": "--config.rollout.gen_length",
    "block_length": "--block_length",
    "cache": "--config.rollout.cache",
}
"""Of `jax_unmask.calibrate`, by what they say of an environment."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Mean forwards per sequence at several settings, from slow to fast.

    Attributes:
        name: what the environment is called.
        environment: what was measured: denoiser, task, canvas, block length, cache, distribution.
        alphas, scales: what the policy is told, and what its probabilities of filling are
            multiplied with; neither ever descends.
        nfe: mean forwards at each pair of them.
        prompts: number of prompts.
    """

    name: str
    environment: dict[str, str | int | float]
    alphas: tuple[float, ...]
    scales: tuple[float, ...]
    nfe: tuple[float, ...]
    prompts: int

    def settings(self, nfe: float) -> dict[str, float]:
        """The alpha and scale at which the policy takes that many forwards on average.

        Between the measured ones, see `between`, and monotone: fewer forwards are never a smaller
        alpha or scale.

        Raises:
            SettingError: the policy can't take as few, or as many.
        """
        forwards = np.minimum.accumulate(self.nfe)
        most, fewest = float(forwards[0]), float(forwards[-1])
        if not fewest <= nfe <= most:
            problem = f"calibrated on {self.name!r}, the policy takes {fewest:.4g} to {most:.4g}"
            raise SettingError("nfe", nfe, problem, "Ask for a number in between")
        place = float(np.interp(-np.log(nfe), -np.log(forwards), np.arange(len(forwards))))
        index = min(int(place), len(forwards) - 2)
        found = {}
        for name, values in (("alpha", self.alphas), ("scale", self.scales)):
            low, high = values[index], values[index + 1]
            each = between(low, high, place - index, margins=name == "scale")
            found[name] = min(max(each, low), high)
        return found

    def differences(self, environment: Environment) -> str:
        """The differences of its environment from the given one; "" if it fits."""
        return ", ".join(
            f"{name} {self.environment.get(name)} instead of {value}"
            for name, value in environment.items()
            if self.environment.get(name) != value
        )


def between(low: float, high: float, share: float, *, margins: bool = True) -> float:
    """A number between two positive ones, linear in logarithms.

    With `margins` in those of 2s - 1 where both have one: deterministic actions of a scale s fill
    where the probability is above 1 / 2s, and policies are sure of what they do.
    """
    offset = 0.5 if margins and min(low, high) > 0.5 else 0.0
    return offset + (low - offset) ** (1 - share) * (high - offset) ** share


def load_calibrations(directory: str | pathlib.Path) -> dict[str, Calibration]:
    """The calibrations of a policy directory by name, in the order in which they were made.

    Raises:
        ValueError: the file is damaged.
    """
    path = pathlib.Path(directory) / FILE
    if not path.is_file():
        return {}
    try:
        read = [Calibration(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
        found = [
            dataclasses.replace(
                each, alphas=tuple(each.alphas), scales=tuple(each.scales), nfe=tuple(each.nfe)
            )
            for each in read
        ]
        tables = [np.asarray([each.alphas, each.scales, each.nfe], float) for each in found]
        for table in tables:
            steps = np.diff(table[:2])
            if not (table > 0).all() or (steps < 0).any() or not (steps > 0).any(axis=0).all():
                raise ValueError("alphas and scales must ascend, and all numbers be positive")
    except (ValueError, TypeError) as error:
        remedy = "calibrate the policy again"
        raise ValueError(f"{path} holds no calibrations ({error}); {remedy}") from error
    return {each.name: each for each in found}


def save_calibration(directory: str | pathlib.Path, calibration: Calibration) -> None:
    """Adds a calibration to a policy directory, in place of one of the same name."""
    known = load_calibrations(directory) | {calibration.name: calibration}
    text = json.dumps([dataclasses.asdict(each) for each in known.values()], indent=2)
    atomic_write(pathlib.Path(directory) / FILE, text + "\n")


def find_calibration(
    directory: str | pathlib.Path, name: str | None, environment: Environment
) -> Calibration:
    """The calibration of a name; without one, the only one that fits the environment.

    A named one must fit the canvas and its blocks: on another denoiser the policy may take other
    forwards, on another canvas it does.

    Raises:
        SettingError: there is no such calibration, or there are several and none is named.
    """
    known = load_calibrations(directory)
    canvas = {key: environment[key] for key in _CANVAS if key in environment}
    make = f"Make one: {_command(directory, environment)}"
    if name is not None:
        if name not in known:
            names = [each.name for each in known.values() if not each.differences(canvas)]
            remedy = f"Name one for this canvas: {', '.join(names)}. {make}" if names else make
            raise SettingError("calibration", name, "the policy has no such calibration", remedy)
        if differs := known[name].differences(canvas):
            remedy = f"Use that. {make}"
            raise SettingError("calibration", name, f"it was made with {differs}", remedy)
        return known[name]
    fitting = [each for each in known.values() if not each.differences(environment)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        problem = f"forwards are asked for by a calibration, and {len(fitting)} fit here"
        remedy = f"Name one of them ({', '.join(each.name for each in fitting)})"
        raise SettingError("calibration", name, problem, remedy)
    # Those that could be named here, and those of the denoiser, whose canvas could be taken.
    denoiser = {key: environment[key] for key in ("denoiser",) if key in environment}
    closest = [
        f"{each.name} ({each.differences(environment)})"
        for each in known.values()
        if not (each.differences(canvas) and each.differences(denoiser))
    ]
    here = ", ".join(f"{key} {value}" for key, value in environment.items())
    problem = "forwards are asked for by a calibration, and the policy has none that fits here"
    problem += f" ({here})" if here else ""
    problem += f"; of others there are {'; '.join(closest)}" if closest else ""
    remedy = f"{make} (or give alpha instead of nfe"
    remedy += ", or name one of this canvas, calibration=NAME)" if closest else ")"
    raise SettingError("calibration", name, problem, remedy)


def _command(directory: str | pathlib.Path, environment: Environment) -> str:
    """The command that makes a calibration for an environment, as far as that is known."""
    place, denoiser = pathlib.Path(directory), environment.get("denoiser")
    is_shipped, task = shipped.is_shipped_policy(place), environment.get("task")
    words = ["python", "-m", "jax_unmask.calibrate"]
    if denoiser in shipped.shipped_models():
        words.append(f"--config=tiny_policy.py:{denoiser}")
    else:
        words.append("--config=FILE.py")
        words += [f"--config.model.path={denoiser}"] if denoiser else []
    words += [f"--config.task.name={task}"] if task not in (None, denoiser) else []
    words.append(f"--policy={place.name if is_shipped else place}")
    for name, flag in _FLAGS.items():
        if name in environment:
            words.append(f"{flag}={environment[name]}")
    return shlex.join(words)
