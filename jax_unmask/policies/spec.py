"""Policies by name: `threshold:threshold=0.9`, `learned:DIR,temperature=0.5`.

A name is one of `POLICIES` or an import path, as in `my_package.rules.AboveMean:threshold=0.4`. It
stands for a class of policies, or for a function that loads one: then the directory, or whatever
else the function takes, comes first.
"""

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

from jax_unmask import notation, shipped
from jax_unmask.denoisers import hub
from jax_unmask.policies.base import Params, Policy, alphas_of, steps_are_of_canvas
from jax_unmask.policies.calibration import FILE, Environment, find_calibration
from jax_unmask.policies.checkpoint import CONFIG, WEIGHTS, load_policy, made_for
from jax_unmask.policies.learned import LearnedPolicy
from jax_unmask.runtime.exports import EXPORTS
from jax_unmask.runtime.files import local_path
from jax_unmask.settings import SettingError

POLICIES = notation.Names(
    "policy",
    {
        "random": "heuristics.Random",
        "top_confidence": "heuristics.TopConfidence",
        "margin": "heuristics.Margin",
        "left_to_right": "heuristics.LeftToRight",
        "threshold": "heuristics.Threshold",
        "factor": "heuristics.Factor",
        "entropy_bounded": "heuristics.EntropyBounded",
        "cumulated_entropy": "heuristics.CumulatedEntropy",
        "frontier_threshold": "heuristics.FrontierThreshold",
        "frontier_told": "heuristics.FrontierTold",
        "conflict_free": "heuristics.ConflictFree",
        "reconsider": "heuristics.Reconsider",
        "origin": "family_samplers.Origin",
        "maskgit_plus": "family_samplers.MaskgitPlus",
        "topk_margin": "family_samplers.TopkMargin",
        "entropy": "family_samplers.Entropy",
        "dream_threshold": "family_samplers.DreamThreshold",
        "dynamic": "family_samplers.Dynamic",
        "dynamic_edit": "family_samplers.DynamicEdit",
        "learned": "spec.load_learned",
        # As the public samplers of LLaDA and SDAR call them.
        "low_confidence": "heuristics.LowConfidence",
        "low_confidence_static": "heuristics.TopConfidence",
        "low_confidence_dynamic": "family_samplers.Dynamic",
        "sequential": "heuristics.LeftToRight",
    },
    package="jax_unmask.policies",
)

DEFAULT = "threshold:threshold=0.9"
"""Where no policy is asked for, and none is known to suit the denoiser."""


def available() -> dict[str, dict[str, Any]]:
    """Short names of all policies, each with its settings and their defaults.

    A learned policy keeps the settings that it was saved with unless others are given.
    """
    made = {name: POLICIES(name) for name in POLICIES}
    return {
        name: {key: each.default for key, each in (_settings(make) | _loading(make)).items()}
        for name, make in made.items()
    }


def parse_policy(text: str, *, environment: Environment | None = None) -> tuple[Policy, Params]:
    """The policy, and its params, of NAME, NAME:SETTING=VALUE,... or NAME:DIR,SETTING=VALUE,...

    >>> policy, params = parse_policy("factor:factor=2,reference_compat=true")
    >>> policy, float(params["factor"])
    (Factor(reference_compat=True), 2.0)

    Args:
        text: the notation.
        environment: what is known of where the policy will act (of denoiser, task, gen_length,
            block_length, cache): a number of forwards can be asked for only where it was
            calibrated.

    Raises:
        NotationError: unknown name or setting (with close matches), or a value out of range.
        FileNotFoundError: a learned policy that does not exist.
    """
    spec = notation.parse(text)
    make = POLICIES(spec.name)
    loads = not isinstance(make, type)
    if loads and not spec.target:
        problem = f"no directory; write {spec.name}:DIR or {spec.name}:DIR,temperature=0.5"
        raise notation.NotationError(text, problem)
    if spec.target and not loads:
        problem = f"{spec.target!r} is not of the form SETTING=VALUE"
        raise notation.NotationError(text, problem)
    policy, params = make(spec.target) if loads else (None, {})
    loading = _loading(make)
    settings_there_are = _settings(policy or make) | loading
    given = spec.arguments({key: p.annotation for key, p in settings_there_are.items()})
    chosen = {key: given.pop(key) for key in loading.keys() & given.keys()}
    fields = {field.name for field in dataclasses.fields(make if policy is None else policy)}
    static = {key: value for key, value in given.items() if key in fields}
    numbers = {key: value for key, value in given.items() if key not in fields}
    try:
        if chosen:
            if "alpha" in numbers:
                raise ValueError(f"alpha and {' and '.join(sorted(chosen))} exclude each other")
            policy, params = make(spec.target, **chosen, **_place(make, environment))
        policy = make(**static) if policy is None else dataclasses.replace(policy, **static)
        settings = policy.params(**numbers)
    except ValueError as error:
        raise notation.NotationError(text, str(error)) from error
    if loads:  # Settings that are not given stay as they were saved.
        settings = {key: settings[key] for key in numbers}
    return policy, params | settings


def adjusted(
    text: str,
    policy: Policy,
    params: Params,
    settings: Mapping[str, Any],
    *,
    environment: Environment | None = None,
) -> tuple[Policy, Params]:
    """A policy with other settings; weights are not loaded again.

    Args:
        text: its notation; `policy` and `params` are what `parse_policy` made of it.
        settings: by their names there. For rules that spread their positions over `steps`, `nfe`
            is the steps of the whole canvas.
        environment: as in `parse_policy`.

    Raises:
        SettingError: there is no such setting, or its value is out of range.
    """
    if not settings:
        return policy, params
    given, spec = dict(settings), notation.parse(text)
    make = POLICIES(spec.name)
    known = _settings(policy)
    nfe = given.pop("nfe", None)
    if nfe is not None:
        if make is load_learned and "alpha" not in given:
            assert isinstance(policy, LearnedPolicy)
            directory = policy_directory(spec.target)
            name = dict(spec.settings).get("calibration")
            policy, told = _told(directory, policy, nfe, name, environment)
            params = params | told
        elif "steps" in known and not {"steps", "tokens_per_step"} & given.keys():
            given["steps"] = _steps(policy, nfe, environment or {})
        else:
            problem = f"{spec.name} takes the forwards that it takes"
            remedy = "Leave it out, or choose a policy that is told alpha, or one with `steps`"
            raise SettingError("nfe", nfe, problem, remedy)
    for name in given.keys() - known.keys():
        is_told = "steps" in known or (make is load_learned and bool(alphas_of(policy)))
        there_are = [*known, *(["nfe"] if is_told else [])]
        problem = f"{spec.name} has no such setting{notation.suggestion(name, there_are)}"
        raise SettingError(name, given[name], problem, "Change its name, or leave it out")
    fields = {field.name for field in dataclasses.fields(policy)}  # type: ignore[arg-type]
    static = {name: value for name, value in given.items() if name in fields}
    if static:
        policy = dataclasses.replace(policy, **static)  # type: ignore[type-var]
    numbers = {name: value for name, value in given.items() if name not in fields}
    made = policy.params(**numbers)
    return policy, params | {name: made[name] for name in numbers}


def _steps(policy: Policy, nfe: float, environment: Environment) -> int:
    """The setting `steps` with which a rule takes so many forwards on a canvas."""
    blocks = 1
    length, block = (environment.get(name, 1) for name in ("gen_length", "block_length"))
    if not steps_are_of_canvas(policy):
        blocks = -(-int(length) // int(block))
    if nfe < blocks or nfe % blocks:
        problem = f"the canvas has {blocks} blocks of equal steps"
        raise SettingError("nfe", nfe, problem, "Give a multiple of their number")
    return int(nfe) // blocks


def _told(
    directory: pathlib.Path,
    policy: LearnedPolicy,
    nfe: float,
    calibration: str | None = None,
    environment: Environment | None = None,
) -> tuple[LearnedPolicy, Params]:
    """A policy that is asked for forwards, and the settings with which it takes them."""
    if not policy.alphas:
        problem = "the policy was trained for one alpha and takes the forwards that it takes"
        raise SettingError("nfe", nfe, problem, "Leave it out, or choose another policy")
    found = find_calibration(directory, calibration, environment or {})
    # Unless the caller says otherwise, it acts as it did when its forwards were counted.
    acts: dict[str, Any] = {"distribution": found.environment["distribution"]}
    return dataclasses.replace(policy, **acts), policy.params(**found.settings(nfe))


def load_learned(
    name: str,
    nfe: float | None = None,
    calibration: str | None = None,
    environment: Environment | None = None,
) -> tuple[LearnedPolicy, Params]:
    """Loads a policy from its directory, or one that ships with the package by its name.

    It acts as it does best where it was trained, if its files say so (`checkpoint.MadeFor`).

    Args:
        name: the directory (also the workdir of the run that trained it), or the name.
        nfe: denoiser forwards that a sequence should take on average, for policies that can be told
            an alpha. A calibration says which alpha that is.
        calibration: the name of that calibration; None for the only one that fits.
        environment: what is known of where the policy will act.

    Raises:
        FileNotFoundError: there is no such directory or name, or a file in it is missing.
        SettingError: the policy cannot take that many forwards, or has no such calibration.
    """
    directory = policy_directory(name)
    policy, params = load_policy(directory)
    for made in made_for(directory)[:1]:  # It acts alike in all of them.
        best: dict[str, Any] = {"distribution": made.distribution}
        policy = dataclasses.replace(policy, **best)
    if nfe is not None:
        policy, told = _told(directory, policy, nfe, calibration, environment)
        return policy, params | told
    if calibration is not None:
        raise SettingError("calibration", calibration, "it is of no use without nfe", "Give nfe=")
    return policy, params


def policy_directory(name: str) -> pathlib.Path:
    """The directory of a policy: its path, that of the run that trained it, or a shipped name.

    A name on the Hugging Face hub, OWNER/NAME, is downloaded if there is no such path.

    Raises:
        FileNotFoundError: there is no policy of that name.
    """
    path = local_path(name).expanduser()
    exported = path / EXPORTS["policy"].directory
    if not (path / CONFIG).is_file() and (exported / CONFIG).is_file():
        return exported
    if not path.exists() and hub.is_name(name) and path.parent.name not in ("..", "."):
        return hub.download(name, [CONFIG, WEIGHTS, FILE])
    if path.exists() or path.is_absolute() or len(path.parts) > 1:
        return path
    if name not in shipped.shipped_policies():
        raise FileNotFoundError(
            f"learned policy {name!r} is neither a directory nor one of the shipped policies"
            f"{notation.suggestion(name, shipped.shipped_policies())}"
        )
    return shipped.assets() / "policies" / name


def _loading(make: Any) -> dict[str, inspect.Parameter]:
    """Settings of a function that loads policies, beside the directory; none of a class."""
    if isinstance(make, type):
        return {}
    settings = dict(list(notation.parameters(make).items())[1:])
    settings.pop("environment", None)  # Nobody sets where it acts: the commands know.
    return settings


def _place(make: Any, environment: Environment | None) -> dict[str, Any]:
    """The argument of a function that loads policies which says where they will act, if it asks."""
    asks = "environment" in inspect.signature(make).parameters
    return {"environment": environment or {}} if asks else {}


def _settings(policy: Any) -> dict[str, Any]:
    """Parameters with the types of their settings: the numbers of `params`, then static fields."""
    policy = LearnedPolicy if policy is load_learned else policy
    return dict(_settings_of(policy if isinstance(policy, type) else type(policy)))


@functools.cache
def _settings_of(kind: type) -> dict[str, Any]:
    numbers = notation.parameters(kind.params)  # type: ignore[attr-defined]
    fields = notation.parameters(kind)
    static = {key: each for key, each in fields.items() if notation.is_plain(each.annotation)}
    numeric = {
        key: each if notation.is_plain(each.annotation) else each.replace(annotation=float)
        for key, each in numbers.items()
    }
    return {key: each for key, each in (numeric | static).items() if key != "self"}
