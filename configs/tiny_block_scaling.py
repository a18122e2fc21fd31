"""TraceRL from blocks of 4 to blocks of 8 on a small denoiser with block attention: `:SEED`.

The recipe of `configs/block_scaling.py` (arXiv 2509.06949, section 5.8) on worked arithmetic, from
a denoiser that has only ever seen blocks of 4: 60 steps that roll out in blocks of 4 and train in
blocks of 8, then 40 steps in blocks of 8 throughout. Each stage is measured in both.

    python -m jax_unmask.train --config=configs/tiny_block_sft.py --workdir=runs/block_arithmetic
    python -m jax_unmask.train --config=configs/tiny_block_scaling.py:0 --workdir=runs/scaling-0

`:SEED,MODEL` starts from another directory than runs/block_arithmetic/model.
"""

from jax_unmask import config as defaults

_STAGES = (
    "train.steps=60 rollout.block_length=4 learner.block_length=8",
    "train.steps=40 rollout.block_length=8",
)


def get_config(choice: str = "0"):
    seed, _, model = choice.partition(",")
    if not seed.isdecimal():
        raise ValueError(f"tiny_block_scaling.py:{choice} is unknown; use :SEED or :SEED,MODEL")
    config = defaults.curriculum()
    config.stages = tuple(
        # Problems and draws of the second stage are not those of the first.
        f"configs/tracerl.py:block {stage} seed={2 * int(seed) + number} eval.block_lengths=(4,8)"
        for number, stage in enumerate(_STAGES)
    )
    first, *others = config.stages
    config.stages = (f"{first} model.path={model or 'runs/block_arithmetic/model'}", *others)
    return config
