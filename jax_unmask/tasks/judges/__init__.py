"""Judges: scores of the chunks of a solution, beside the checker's score of the whole."""

from jax_unmask.tasks.judges.base import Judge, Solution
from jax_unmask.tasks.judges.language_model import LanguageModelJudge
from jax_unmask.tasks.judges.steps import StepJudge

__all__ = ["Judge", "LanguageModelJudge", "Solution", "StepJudge"]
