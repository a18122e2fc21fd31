"""Learned unmasking policies for masked diffusion language models, in JAX and Flax.

One call answers prompts; the parts are imported by name, so that importing the package costs
nothing:

    from jax_unmask import Generator
    from jax_unmask import denoisers, policies, rollout

Folders, each using only those below it: commands (`python -m jax_unmask.NAME` starts
`commands/NAME.py`), recipes (one file for each way to train), evaluation, generation and report,
learners, environment (what a config names), rollout (the one sampling loop), policies, denoisers,
tasks, runtime. From prompt to gradient: `commands/train.py` calls a recipe's `step`; that rolls out
(`rollout/loop.py`), checks the answers (`tasks/`), and updates (`learners/`).
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Generator"]


def __getattr__(name: str) -> Any:
    """Imports what is public here when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("jax_unmask.generation.generator"), name)
