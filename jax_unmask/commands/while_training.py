"""Measurements of a denoiser while it is trained, for the metrics of its run."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jax_unmask import recipes
from jax_unmask.environment.bundle import Bundle, load_task
from jax_unmask.environment.settings import RunSettings
from jax_unmask.evaluation import axes
from jax_unmask.evaluation.candidates import candidates
from jax_unmask.evaluation.measure import MOST_ROWS
from jax_unmask.evaluation.problems import Measured, Problems, load_problems, measure_one
from jax_unmask.settings import ConfigError


@dataclasses.dataclass(frozen=True)
class _Case:
    """One combination of the axes."""

    settings: RunSettings
    name: str  # Empty where there is no other.
    problems: Problems


class WhileTraining:
    """Measures the heuristics of `eval.policies` with the denoiser as it is.

    What is measured follows from the parameters and the config alone, so a run that is resumed
    has the same metrics.

    Args:
        config: a full config.

    Raises:
        ConfigError: an axis varies something else than rollouts, or a combination makes no sense.
    """

    def __init__(self, config: ConfigDict) -> None:
        self._combinations = axes.combinations(config)
        for key in self._combinations[0].values:
            if not key.startswith("rollout."):
                raise ConfigError(
                    "eval.axes",
                    config.eval.axes,
                    f"while training (`eval.every`) only rollouts can vary, not {key}",
                    "Leave that axis out, or set `eval.every` = 0",
                )
        for each in self._combinations:
            candidates(recipes.read(each.config))
        self._task: Any = None
        self._cases: list[_Case] = []

    def __call__(self, bundle: Bundle) -> dict[str, float]:
        """Accuracy and forwards of each policy, block length and combination of the axes.

        They are `eval_accuracy` and `eval_nfe`, means over problems and seeds, followed by what
        tells them apart where there are several.
        """
        if not self._cases:
            self._load(bundle)
        found: dict[str, tuple[float, float]] = {}
        for case in self._cases:
            settings = case.settings
            for candidate in candidates(settings):
                for block in candidate.block_lengths:
                    text = f"{candidate.text}@{block} {case.name}".strip()
                    found[text] = self._measure(bundle, case, candidate, block)
        metrics: dict[str, float] = {}
        for text, (accuracy, nfe) in found.items():
            ending = "" if len(found) == 1 else f" {text}"
            metrics |= {f"eval_accuracy{ending}": accuracy, f"eval_nfe{ending}": nfe}
        return metrics

    def _load(self, bundle: Bundle) -> None:
        for each in self._combinations:
            settings = recipes.read(each.config)
            if self._task is None:
                self._task = load_task(settings, prompt_style=settings.eval.prompt_style)
            several = len(self._combinations) > 1
            name = ",".join(f"{key}={value}" for key, value in each.values.items())
            problems = load_problems(settings, bundle, self._task, settings.eval.split)
            self._cases.append(_Case(settings, name if several else "", problems))

    def _measure(
        self, bundle: Bundle, case: _Case, candidate: Any, block: int
    ) -> tuple[float, float]:
        settings, problems = case.settings, case.problems
        draws = candidate.draws or settings.sampling.temperature > 0
        rows, results = min(len(problems.examples), MOST_ROWS), []
        for seed in settings.eval.seeds if draws else settings.eval.seeds[:1]:
            item = Measured(candidate, problems, block, seed, settings.sampling.cache)
            done = measure_one(settings, bundle, self._task, item, rows)
            results.append((done.correct.mean(), done.nfe.mean()))
        accuracy, nfe = np.mean(results, axis=0)
        return float(accuracy), float(nfe)
