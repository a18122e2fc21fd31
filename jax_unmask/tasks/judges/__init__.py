"""Judges: what the parts of a solution are worth, where a checker only knows the whole."""

from jax_unmask.tasks.judges.base import Judge, Solution
from jax_unmask.tasks.judges.language_model import LanguageModelJudge
from jax_unmask.tasks.judges.steps import StepJudge

__all__ = ["Judge", "LanguageModelJudge", "Solution", "StepJudge"]
