"""Policies from short strings, as commands and configs spell them.

`threshold:threshold=0.9`, `top_confidence:tokens_per_step=2`,
`learned:DIR,temperature=0.5,scale=2`, `factor:factor=1,reference_compat=true`.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import pathlib
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from jax_unmask.policies import family_samplers, heuristics
from jax_unmask.policies.base import Params, Policy
from jax_unmask.policies.checkpoint import load_policy
from jax_unmask.policies.learned import LearnedPolicy

HEURISTICS: dict[str, Any] = {
    "random": heuristics.Random,
    "top_confidence": heuristics.TopConfidence,
    "margin": heuristics.Margin,
    "left_to_right": heuristics.LeftToRight,
    "threshold": heuristics.Threshold,
    "factor": heuristics.Factor,
    "entropy_bounded": heuristics.EntropyBounded,
    "frontier_threshold": heuristics.FrontierThreshold,
    "conflict_free": heuristics.ConflictFree,
    "origin": family_samplers.Origin,
    "maskgit_plus": family_samplers.MaskgitPlus,
    "topk_margin": family_samplers.TopkMargin,
    "entropy": family_samplers.Entropy,
    "dream_threshold": family_samplers.DreamThreshold,
    "dynamic": family_samplers.Dynamic,
    "dynamic_edit": family_samplers.DynamicEdit,
}
ALIASES = {
    "low_confidence": "top_confidence",
    "low_confidence_static": "top_confidence",
    "low_confidence_dynamic": "dynamic",
    "sequential": "left_to_right",
}
"""Names that the public samplers of LLaDA and SDAR have."""
LEARNED = "learned"
SHIPPED = pathlib.Path(__file__).parents[1] / "assets" / "policies"

_LEARNED_NUMBERS = {"temperature": 1.0, "scale": 1.0}


def available() -> dict[str, dict[str, Any]]:
    """Names of all policies, each with its settings and their defaults.

    The settings of "learned" default to those in the policy's directory; None stands for that.
    """
    listing = {name: _settings(policy) for name, policy in HEURISTICS.items()}
    listing[LEARNED] = dict.fromkeys([*_LEARNED_NUMBERS, *_learned_fields()])
    return listing


def parse_policy(spec: str) -> tuple[Policy, Params]:
    """Builds a policy from NAME or NAME:SETTING=VALUE,...

    Args:
        spec: a name of `available()` with settings; settings that are left out have their
            defaults. `learned:` is followed by the policy's directory, or by the name of one that
            ships with the package, and then by settings.

    Returns:
        (policy, params).

    Raises:
        ValueError: unknown name or setting (with close matches), or a value out of range.
        FileNotFoundError: a learned policy that does not exist.
    """
    name, _, rest = spec.partition(":")
    name = ALIASES.get(name.strip(), name.strip())
    _check_known("policy", name, [*HEURISTICS, LEARNED], spec)
    pieces = [piece.strip() for piece in rest.split(",")] if rest.strip() else []
    if name == LEARNED:
        return _learned(spec, pieces)
    given = _pairs(spec, pieces)
    _check_settings(name, given, _settings(HEURISTICS[name]), spec)
    static = {field.name: field.default for field in dataclasses.fields(HEURISTICS[name])}
    own = {k: _static(spec, k, v, static[k]) for k, v in given.items() if k in static}
    numbers = {k: _number(spec, k, v) for k, v in given.items() if k not in static}
    try:
        policy = HEURISTICS[name](**own)
        return policy, policy.params(**numbers)
    except ValueError as error:
        raise ValueError(f"policy {spec!r}: {error}") from error


def _learned(spec: str, pieces: list[str]) -> tuple[LearnedPolicy, Params]:
    if not pieces or "=" in pieces[0]:
        raise ValueError(
            f"policy {spec!r} names no directory; write learned:DIR or learned:DIR,temperature=0.5"
        )
    given = _pairs(spec, pieces[1:])
    _check_settings(LEARNED, given, [*_LEARNED_NUMBERS, *_learned_fields()], spec)
    policy, params = load_policy(_find(pieces[0]))
    changes: dict[str, Any] = {}
    for key, value in given.items():
        if key in _LEARNED_NUMBERS:
            number = _number(spec, key, value)
            if number <= 0:
                raise ValueError(f"policy {spec!r}: {key}={value} must be positive")
            params[key] = jnp.asarray(number, jnp.float32)
        elif key == "dpls_stop_logit":
            changes[key] = _number(spec, key, value)
        elif key == "exact_fallback":
            changes[key] = _boolean(spec, key, value)
        else:
            changes[key] = value
    try:
        return dataclasses.replace(policy, **changes), params
    except ValueError as error:
        raise ValueError(f"policy {spec!r}: {error}") from error


def _find(name: str) -> pathlib.Path:
    path = pathlib.Path(name).expanduser()
    if path.exists() or path.is_absolute() or len(path.parts) > 1:
        return path
    shipped = sorted(entry.name for entry in SHIPPED.iterdir()) if SHIPPED.is_dir() else []
    if name not in shipped:
        raise FileNotFoundError(
            f"learned policy {name!r} is neither a directory nor one of the shipped policies "
            f"({', '.join(shipped) or 'none'})"
        )
    return SHIPPED / name


def _settings(policy: Any) -> dict[str, Any]:
    """Settings of a heuristic and their defaults: those in params, then its static fields."""
    dynamic = {
        name: parameter.default
        for name, parameter in inspect.signature(policy.params).parameters.items()
        if name != "self"
    }
    return dynamic | {field.name: field.default for field in dataclasses.fields(policy)}


def _learned_fields() -> list[str]:
    return [field.name for field in dataclasses.fields(LearnedPolicy) if field.name != "network"]


def _pairs(spec: str, pieces: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for piece in pieces:
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"policy {spec!r}: {piece!r} is not of the form SETTING=VALUE")
        if key in given:
            raise ValueError(f"policy {spec!r}: {key} is given twice")
        given[key] = value
    return given


def _check_settings(name: str, given: Iterable[str], known: Iterable[str], spec: str) -> None:
    for key in given:
        _check_known(f"setting of {name}", key, list(known), spec)


def _check_known(kind: str, name: str, known: list[str], spec: str) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    raise ValueError(f"policy {spec!r}: unknown {kind} {name!r}; {hint}")


def _number(spec: str, name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"policy {spec!r}: {name}={text} is not a number") from error


def _static(spec: str, name: str, text: str, default: Any) -> bool | int:
    """A static field of a heuristic: yes or no, or a whole number."""
    if isinstance(default, bool):
        return _boolean(spec, name, text)
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"policy {spec!r}: {name}={text} is not a whole number") from error


def _boolean(spec: str, name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"policy {spec!r}: {name}={text} must be true or false")
    return text.lower() == "true"
