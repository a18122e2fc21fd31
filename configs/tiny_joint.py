"""Trains an unmasking policy and its denoiser from the same rollouts: `:sudoku`, `:arithmetic`.

Both begin with what ships: the task's denoiser, and the universal policy, which is told alpha.

    python -m jax_unmask.train --config=configs/tiny_joint.py:arithmetic --workdir=runs/joint

What that is compared with has the same rollouts, start and learning rates: `:arithmetic,policy`
trains the policy alone, `:arithmetic,denoiser` the denoiser alone, under a threshold, and one after
the other is `:arithmetic,policy` with `--config.model.path=` of a denoiser so trained.
"""

import pathlib
import runpy

from jax_unmask import recipes

_UNIVERSAL = runpy.run_path(str(pathlib.Path(__file__).with_name("universal_policy.py")))
TASKS = ("arithmetic", "sudoku")
_RECIPES = {"joint": "joint", "policy": "policy_grpo", "denoiser": "tracerl"}


def get_config(names: str = "arithmetic"):
    task, _, learns = names.partition(",")
    if (learns := learns or "joint") not in _RECIPES or task not in TASKS:
        raise ValueError(
            f"tiny_joint.py:{names} is unknown; use {' or '.join(f':{each}' for each in TASKS)}, "
            "and after it ,policy or ,denoiser for one alone"
        )
    alone = _UNIVERSAL["get_config"](task)
    config = recipes.config(_RECIPES[learns])
    config.task.update(name=task, prompt_length=alone.task.prompt_length, truncate_prompts=False)
    config.model.update(path=task, dtype="float32", param_dtype="float32")
    length = alone.rollout.gen_length
    config.rollout.update(gen_length=length, block_length=length, temperature=1.0)
    config.rollout.update(prompts_per_step=32, group_size=8, slots=64)
    if learns != "denoiser":
        config.policy.network.update(alone.policy.network)
        config.policy.init_from = "universal"
        config.learner.update(entropy_coefficient=0.005, chunk_size=512, minibatches=2, passes=1)
        config.optimizer.update(lr=5e-4, warmup_steps=10, final_fraction=0.1, grad_clip=1.0)
        config.optimizer.weight_decay = 0.0
    if learns != "policy":
        config.model.remat = False
        denoiser = config if learns == "denoiser" else config.denoiser
        denoiser.filter.update(low=0.05, high=0.95)
        # As in tracerl.py: the canvas ends in padding, whose first token is the end of the text.
        denoiser.learner.update(num_pads=1, minibatches=1, chunk_size=64, shrink=2)
        denoiser.optimizer.update(lr=1e-4, schedule="cosine", final_fraction=0.1, b2=0.99)
    if learns == "denoiser":
        config.rollout.policy = "threshold:threshold=0.5"
        config.filter.rounds = 1
    config.train.steps = 100
    config.checkpoint.every = 10
    config.eval.update(alone.eval, num_problems=1000, batch_size=250, block_lengths=(length,))
    config.eval.update(shipped=("universal",), seeds=(0,))
    return config
