"""The candidates of an evaluation: every policy of a config at every setting."""

from __future__ import annotations

import dataclasses
import fnmatch
import pathlib
import re
from collections.abc import Sequence

from jax_unmask import notation, policies
from jax_unmask.environment.bundle import build_cache
from jax_unmask.environment.settings import RunSettings
from jax_unmask.policies.base import Params, Policy
from jax_unmask.report import curves, results
from jax_unmask.settings import ConfigError
from jax_unmask.shipped import shipped_policies

_SEED = re.compile(r"(?P<method>.+?)[-_]seed(?P<seed>\d+)")
# Written with a task in mind, and no published heuristics.
_RULES = ("frontier_threshold", "conflict_free")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A policy at one setting, ready to be rolled out.

    Attributes:
        text: the policy in the notation of `policies.parse_policy`.
        method: name of the series that it belongs to in tables and plots.
        label: group of methods, see `report.results.LABELS`.
        settings: its settings; numbers where they are numbers.
        policy: the policy.
        params: its parameters, settings included.
        block_lengths: block lengths to measure it at.
        training_seed: seed of its training run, if it is one of several.
    """

    text: str
    method: str
    label: str
    settings: dict[str, float | str]
    policy: Policy
    params: Params
    block_lengths: tuple[int, ...]
    training_seed: int | None = None

    @property
    def draws(self) -> bool:
        """Whether it gives different results under different seeds."""
        return self.policy.needs.keys


def check(config: RunSettings) -> None:
    """Checks all of `config.eval` that can be checked before anything is loaded.

    Raises:
        ConfigError: something that it names cannot be read, or is not there.
    """
    candidates(config)
    for text in config.eval.caches:
        build_cache(text, "eval.caches")
    for text in config.eval.viewer:
        _expand("eval.viewer", text)
    for text in config.eval.trained:
        _expand("eval.trained", f"learned:{text}")
    try:
        curves.find(config.eval.curves)
    except FileNotFoundError as error:
        raise ConfigError("eval.curves", config.eval.curves, str(error), "Correct it") from error


def candidates(
    config: RunSettings, *, trained: str | pathlib.Path | None = None
) -> list[Candidate]:
    """Every policy of `config.eval` at every setting; reads policies, compiles nothing.

    `eval.policies` holds heuristics and `learned:DIR` in the notation of `jax_unmask.notation`;
    `eval.shipped` holds patterns of names of shipped policies ("sudoku-*", or "sudoku-*@16" for
    one block length). Trained and shipped policies are taken at each setting of `eval.trained`. A
    directory NAME-seedK is training run K of the method NAME.

    Args:
        config: a full config.
        trained: directory of the policy that was trained with this config, if any.

    Raises:
        ConfigError: a policy cannot be read, or a block length does not divide the canvas.
    """
    length = config.sampling.gen_length
    for block in _block_lengths(config):
        _check_block("eval.block_lengths", config.eval.block_lengths, block, length)
    found: list[Candidate] = []
    for text in config.eval.policies:
        for spec in _expand("eval.policies", text):
            label = results.RULE if spec.name in _RULES else results.HEURISTIC
            if spec.name == "learned":
                label = "learned"
            found.append(_candidate(config, "eval.policies", spec, label))
    if trained is not None:
        method, seed = "policy", None
        if reward := getattr(config, "reward", None):
            method, seed = f"policy, alpha {reward.alpha:g}", config.seed
        for spec in _at_trained_settings(config, str(trained)):
            candidate = _candidate(config, "eval.trained", spec, results.TRAINED)
            found.append(dataclasses.replace(candidate, method=method, training_seed=seed))
    for pattern in config.eval.shipped:
        for name, blocks in _shipped(pattern):
            for spec in _at_trained_settings(config, name, blocks):
                found.append(_candidate(config, "eval.shipped", spec, results.SHIPPED))
    return found


def _block_lengths(config: RunSettings) -> tuple[int, ...]:
    """Block lengths of `config.eval`, without repetition; 0 for the whole canvas."""
    lengths = [block or config.sampling.gen_length for block in config.eval.block_lengths]
    return tuple(dict.fromkeys(lengths))


def _candidate(config: RunSettings, key: str, spec: notation.Spec, label: str) -> Candidate:
    # 0 for the whole canvas, as in `eval.block_lengths`.
    blocks = tuple(block or config.sampling.gen_length for block in spec.block_lengths)
    for block in blocks:
        _check_block(key, spec.text, block, config.sampling.gen_length)
    try:
        policy, params = policies.parse_policy(spec.text)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(key, spec.text, str(error), "Correct or remove it") from error
    method, seed = spec.name.rpartition(".")[2], None
    if spec.target:
        method = pathlib.PurePath(spec.target).name
        if match := _SEED.fullmatch(method):
            method, seed = match["method"], int(match["seed"])
    return Candidate(
        text=spec.text,
        method=method,
        label=label,
        settings={name: _number(value) for name, value in spec.settings},
        policy=policy,
        params=params,
        block_lengths=blocks or _block_lengths(config),
        training_seed=seed,
    )


def _at_trained_settings(
    config: RunSettings, target: str, blocks: tuple[int, ...] = ()
) -> list[notation.Spec]:
    """A learned policy at each setting of `eval.trained`."""
    specs = []
    for settings in config.eval.trained:
        for spec in _expand("eval.trained", f"learned:{settings}"):
            only = spec.block_lengths or blocks
            specs.append(dataclasses.replace(spec, target=target, block_lengths=only))
    return specs


def _shipped(pattern: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names that match, with the block lengths of the pattern."""
    (spec,) = _expand("eval.shipped", f"learned:{pattern}")
    names = fnmatch.filter(shipped_policies(), spec.target)
    if not names:
        raise ConfigError(
            "eval.shipped",
            pattern,
            "no shipped policy has such a name",
            f"There are: {', '.join(shipped_policies()) or 'none'}",
        )
    return [(name, spec.block_lengths) for name in names]


def _expand(key: str, text: str) -> Sequence[notation.Spec]:
    try:
        return notation.expand(text)
    except ValueError as error:
        raise ConfigError(key, text, str(error), "Correct it") from error


def _check_block(key: str, value: object, block: int, length: int) -> None:
    if block < 1 or length % block:
        raise ConfigError(
            key,
            value,
            f"block length {block} does not divide the canvas length {length}",
            f"Give divisors of it; {length} is full diffusion",
        )


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
