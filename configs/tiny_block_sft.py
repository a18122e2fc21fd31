"""A small denoiser with block attention, as SDAR's, for worked arithmetic in blocks of 4.

    python -m jax_unmask.train --config=configs/tiny_block_sft.py --workdir=runs/block_arithmetic

Trained from random weights in the states of block-wise sampling, all blocks of a response at once.
With fewer steps than the shipped models have it solves its task in part: `configs/tracerl.py:block`
and `configs/tiny_block_scaling.py`, from blocks of 4 to blocks of 8, go on from there.
"""

from jax_unmask import recipes
from jax_unmask.shipped import shipped_lengths


def get_config():
    prompt_length, length, _ = shipped_lengths("arithmetic")
    block = 4
    config = recipes.config("state_sft")
    config.task.update(name="arithmetic", prompt_length=prompt_length)
    config.data.update(gen_length=length, batch_size=64)
    config.model.update(intermediate_size=256, attention_block=block)
    config.learner.update(method="block", block_length=block, mask_low=0.1, mask_high=1.0)
    config.learner.update(normaliser="length", chunk_size=64, positions_per_chunk=2048)
    config.train.steps = 3000
    config.checkpoint.every = 500
    config.log.every = 20
    return config
