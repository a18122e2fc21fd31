"""From blocks of 4 to blocks of 8 on a small denoiser with block attention: `:SEED`.

The recipe of `configs/block_scaling.py` (arXiv 2509.06949, section 5.8) on worked arithmetic:
TraceRL that rolls out in blocks of 4 and trains in blocks of 8, then in blocks of 8 throughout,
each 30 steps at a threshold of 0.9 and measured in both. Large block models have seen whole texts
before; this one has only ever seen blocks of 4 and is lost in blocks of 8, so 300 steps of
supervised training in blocks of 8 come first.

    python -m jax_unmask.train --config=configs/tiny_block_sft.py --workdir=runs/block_arithmetic
    python -m jax_unmask.train --config=configs/tiny_block_scaling.py:0 --workdir=runs/scaling-0

`:SEED,MODEL` starts from another directory than runs/block_arithmetic/model.
"""

from jax_unmask import recipes

_TRACERL = (
    "configs/tracerl.py:block train.steps=30 rollout.policy=threshold:threshold=0.9 "
    "eval.block_lengths=(4,8) "
)


def get_config(choice: str = "0"):
    seed, _, model = choice.partition(",")
    if not seed.isdecimal():
        raise ValueError(f"tiny_block_scaling.py:{choice} is unknown; use :SEED or :SEED,MODEL")
    stages = (
        f"configs/tiny_block_sft.py model.path={model or 'runs/block_arithmetic/model'} "
        "learner.block_length=8 train.steps=300 optimizer.lr=5e-4 optimizer.warmup_steps=20",
        _TRACERL + "rollout.block_length=4 learner.block_length=8",
        _TRACERL + "rollout.block_length=8",
    )
    config = recipes.config("curriculum")
    # Problems and draws of a stage are not those of another.
    config.stages = tuple(
        f"{stage} seed={len(stages) * int(seed) + number}" for number, stage in enumerate(stages)
    )
    return config
