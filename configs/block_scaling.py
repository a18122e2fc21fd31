"""TraceRL from blocks of 4 to blocks of 8 on SDAR-4B and MATH, in two stages.

After arXiv 2509.06949, section 5.8: 60 steps that roll out in blocks of 4 and train in blocks of 8,
then 40 steps in blocks of 8 throughout.

    python -m jax_unmask.train --config=configs/block_scaling.py --workdir=runs/block_scaling
"""

from jax_unmask import recipes

_TRACERL = "configs/tracerl_large.py:sdar-4b,math"


def get_config():
    config = recipes.config("curriculum")
    config.stages = (
        f"{_TRACERL} train.steps=60 rollout.block_length=4 learner.block_length=8",
        f"{_TRACERL} train.steps=40 rollout.block_length=8 "
        "rollout.policy=dynamic:threshold=0.9,steps=8",
    )
    return config
