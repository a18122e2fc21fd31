"""The candidates of an evaluation: every policy of a config at every setting."""

import dataclasses
import fnmatch
import pathlib
import re
from collections.abc import Sequence

from jax_unmask import notation, policies
from jax_unmask.environment.bundle import build_cache, load_denoiser_config
from jax_unmask.environment.settings import RunSettings
from jax_unmask.policies.base import Params, Policy, alphas_of
from jax_unmask.report import curves, results
from jax_unmask.rollout import check_rollout
from jax_unmask.runtime.exports import EXPORTS
from jax_unmask.settings import ConfigError, SettingError, naming
from jax_unmask.shipped import shipped_policies

_SEED = re.compile(r"(?P<method>.+?)[-_]seed(?P<seed>\d+)")
# Written with a task in mind, and no published heuristics.
_RULES = ("frontier_threshold", "frontier_told", "conflict_free", "reconsider")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A policy at one setting, ready to be rolled out.

    Attributes:
        key: the setting that names it.
        text: the policy in the notation of `policies.parse_policy`.
        method: name of the series that it belongs to in tables and plots.
        label: group of methods, see `report.results.LABELS`.
        settings: its settings; numbers where they are numbers.
        policy, params: the policy, and its parameters with settings.
        block_lengths: block lengths to measure it at.
        training_seed: seed of its training run, if it is one of several.
        source: directory of a learned policy, or import path; settings apart, what is measured.
    """

    key: str
    text: str
    method: str
    label: str
    settings: dict[str, float | str]
    policy: Policy
    params: Params
    block_lengths: tuple[int, ...]
    training_seed: int | None = None
    source: str = ""

    @property
    def draws(self) -> bool:
        """Whether it gives different results under different seeds."""
        return self.policy.needs.keys


def check(config: RunSettings) -> None:
    """Raises a `ConfigError` for what of `config.eval` can be wrong before anything is loaded."""
    check_shapes(config, candidates(config))
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


def check_shapes(config: RunSettings, found: Sequence[Candidate]) -> None:
    """Raises a `ConfigError` for a learned policy that cannot act on a canvas of the config.

    Where the denoiser's shape is not known yet, that shows when it is.
    """
    if config.model.path is None:
        return
    try:
        denoiser = load_denoiser_config(config)
    except (OSError, ValueError):  # Loading it says what is wrong.
        return
    for text in config.eval.caches:
        build_cache(text, "eval.caches", denoiser)
    build_cache(str(config.sampling.cache or "none"), "rollout.cache", denoiser)
    learned = {
        (each.policy, block): each
        for each in found
        for block in each.block_lengths
        if isinstance(each.policy, policies.LearnedPolicy)
    }
    for (policy, block), each in learned.items():
        settings = config.sampling_of(denoiser.family)
        settings = dataclasses.replace(settings, block_length=block, cache=None)
        try:
            check_rollout(each.text, policy, each.params, denoiser, settings)
        except SettingError as error:
            key = each.key if error.key == "policy" else f"rollout.{error.key}"
            raise ConfigError(key, error.value, error.problem, error.remedy) from error


def candidates(
    config: RunSettings, *, trained: str | pathlib.Path | None = None
) -> list[Candidate]:
    """Every policy of `config.eval` at every setting; reads policies, compiles nothing.

    `eval.policies` holds heuristics and `learned:DIR` in the notation of `jax_unmask.notation`;
    `eval.shipped` holds patterns of names of shipped policies ("sudoku-*", or "sudoku-*@16" for one
    block length). Trained and shipped policies are taken at each setting of `eval.trained`. A
    directory NAME-seedK is training run K of the method NAME (DIR/policy is named by DIR);
    `trained` is that of the config's own policy.

    Raises:
        ConfigError: a policy cannot be read, two policies would have one name, or a block length
            does not divide the canvas.
    """
    _block_lengths(config, "eval.block_lengths", config.eval.block_lengths)
    found: list[Candidate] = []
    for text in config.eval.policies:
        for spec in _expand("eval.policies", text):
            label = results.RULE if spec.name in _RULES else results.HEURISTIC
            if spec.name == "learned":
                label = "learned"
            found += _candidates(config, "eval.policies", spec, label)
    if trained is not None:
        for spec in _at_trained_settings(config, str(trained)):
            for each in _candidates(config, "eval.trained", spec, results.TRAINED):
                # One that is told alpha has it among its settings.
                name = "policy" if alphas_of(each.policy) else config.policy_name
                found.append(dataclasses.replace(each, method=name, training_seed=config.seed))
    for pattern in config.eval.shipped:
        (named,) = _expand("eval.shipped", f"learned:{pattern}")
        names = fnmatch.filter(shipped_policies(), named.target)
        if not names:
            known = f"There are: {', '.join(shipped_policies()) or 'none'}"
            problem = "no shipped policy has such a name"
            raise ConfigError("eval.shipped", pattern, problem, known)
        for name in names:
            for spec in _at_trained_settings(config, name, named.block_lengths):
                found += _candidates(config, "eval.shipped", spec, results.SHIPPED)
    _check_names(found)
    return found


def _check_names(found: Sequence[Candidate]) -> None:
    """Refuses policies of one name, which tables would average as if they were training seeds."""
    known: dict[tuple[str, str], dict[int | None, Candidate]] = {}
    for each in found:
        seeds = known.setdefault((each.label, each.method), {})
        other = seeds.setdefault(each.training_seed, each)
        if other.source == each.source and len(seeds) > 1 and None in seeds:
            other = next(iter(seeds.values()))
        if other.source != each.source:
            raise ConfigError(
                "eval.policies",
                each.text,
                f"it would have the name of {other.text} in tables: {each.method}",
                "Rename a directory: NAME/policy is called NAME, and NAME-seed0, NAME-seed1, ... "
                "are averaged as training runs of one method",
            )


def _block_lengths(config: RunSettings, key: str, blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Block lengths without repetition, the canvas length for 0, checked."""
    length = config.sampling.gen_length
    lengths = tuple(dict.fromkeys(block or length for block in blocks))
    for block in lengths:
        if block < 1 or length % block:
            raise ConfigError(
                key,
                blocks,
                f"block length {block} does not divide the canvas length {length}",
                f"Give divisors of it; {length} is full diffusion",
            )
    return lengths


def _candidates(config: RunSettings, key: str, spec: notation.Spec, label: str) -> list[Candidate]:
    """A policy at one setting: once per block length where its numbers depend on that."""
    blocks = _block_lengths(config, key, spec.block_lengths or config.eval.block_lengths)
    caches = config.eval.caches or (str(config.sampling.cache or "none"),)
    environment: dict[str, str | int] = {
        "denoiser": str(config.model.path),
        "task": config.task.name.rpartition(".")[2],
        "gen_length": config.sampling.gen_length,
        **({"cache": caches[0]} if len(caches) == 1 else {}),
    }
    with naming(key, spec.text, "Correct or remove it", ConfigError):
        parsed = [
            policies.parse_policy(spec.text, environment={**environment, "block_length": block})
            for block in blocks
        ]
    method, seed = spec.name.rpartition(".")[2], None
    if spec.target:
        path = pathlib.Path(spec.target)
        method = path.name
        if method == EXPORTS["policy"].directory:
            method = path.absolute().parent.name
        if match := _SEED.fullmatch(method):
            method, seed = match["method"], int(match["seed"])
    first = Candidate(
        key=key,
        text=spec.text,
        method=method,
        label=label,
        settings={name: _number(value) for name, value in spec.settings},
        policy=parsed[0][0],
        params=parsed[0][1],
        block_lengths=blocks,
        training_seed=seed,
        source=str(_source(spec)),
    )
    if "nfe" not in first.settings:
        return [first]
    return [
        dataclasses.replace(first, policy=policy, params=params, block_lengths=(block,))
        for block, (policy, params) in zip(blocks, parsed, strict=True)
    ]


def _source(spec: notation.Spec) -> pathlib.Path | str:
    """The files or the class that a policy is from."""
    if spec.name == "learned":
        return policies.policy_directory(spec.target).resolve()
    return pathlib.Path(spec.target).resolve() if spec.target else spec.name


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


def _expand(key: str, text: str) -> list[notation.Spec]:
    with naming(key, text, kind=ConfigError):
        found = notation.expand(text)
    return found


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
