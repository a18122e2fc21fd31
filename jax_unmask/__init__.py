"""Learned unmasking policies for masked diffusion language models, in JAX and Flax.

The parts are imported by name, so that importing the package costs nothing:

    from jax_unmask import denoisers, policies, rollout

Where things are, each folder using only those below it:

    commands/     flags -> parts -> run; `python -m jax_unmask.NAME` starts `commands/NAME.py`
    recipes/      one file for each way to train: policy_grpo, tracerl, sft, state_sft
    evaluation/   measures policies;  generation/  answers prompts;  report/  tables and pages
    learners/     losses and advantages as pure functions, and the updates that they make
    environment/  the denoiser, the tokenizer and the task that a config names
    rollout/      the one sampling loop, from prompts to trajectories
    policies/     which masked positions to fill: heuristics and learned policies
    denoisers/    the models: tokens to logits
    tasks/        problems, prompts, checkers, rewards
    runtime/      checkpoints, metrics, meshes, signals

From prompt to gradient: `commands/train.py` calls a recipe's `step`; that rolls out
(`rollout/loop.py`), checks the answers (`tasks/`), and updates (`learners/`).
"""

__version__ = "0.1.0"
