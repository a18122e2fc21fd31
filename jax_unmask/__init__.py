"""Learned unmasking policies for masked diffusion language models, in JAX and Flax.

The parts are imported by name, so that importing the package costs nothing:

    from jax_unmask import denoisers, policies, rollout

Folders, each using only those below it: commands (`python -m jax_unmask.NAME` starts
`commands/NAME.py`), recipes (one file for each way to train), evaluation, generation and report,
learners, environment (what a config names), rollout (the one sampling loop), policies, denoisers,
tasks, runtime. From prompt to gradient: `commands/train.py` calls a recipe's `step`; that rolls out
(`rollout/loop.py`), checks the answers (`tasks/`), and updates (`learners/`).
"""

__version__ = "0.1.0"
