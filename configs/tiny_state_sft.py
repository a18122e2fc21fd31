"""Supervised training of a small denoiser in its own traces' states: `:full`, `:block`, `:long`.

Worked arithmetic, from a start that solves it only in part, as in arXiv 2509.06949, section 5.2:
the responses are given, and the start itself says in which order it would write them.

    python -m jax_unmask.train --config=configs/tiny_sft.py:arithmetic \\
        --workdir=runs/early_arithmetic --config.train.steps=3000
    python -m jax_unmask.train --config=configs/tiny_state_sft.py --workdir=runs/trace_sft

With block attention the start is that of `configs/tracerl.py:block`. What the trace is compared
with is a flag or two away, at the same number of states per response (four, or two with block
attention): `--config.learner.method=semi_ar`; `random` with `--config.learner.draws=4`; with block
attention, `block` with `--config.learner.draws=2`. Fewer draws cost less.
"""

from jax_unmask import recipes
from jax_unmask.shipped import shipped_lengths


def get_config(attention: str = "full"):
    if attention not in ("full", "block", "long"):
        raise ValueError(f"tiny_state_sft.py:{attention} is unknown; use :full, :block or :long")
    if attention == "long":
        return _long()
    prompt_length, length, block = shipped_lengths("arithmetic")
    if attention == "block":
        block = 4
    config = recipes.config("state_sft")
    config.task.update(name="arithmetic", prompt_length=prompt_length)
    config.data.update(gen_length=length, batch_size=32)
    start = "early_arithmetic" if attention == "full" else "block_arithmetic"
    config.model.path = f"runs/{start}/model"
    # Two tokens per step: sixteen steps of a canvas in four states, or the two steps of each block.
    config.learner.update(method="trace", tokens_per_step=2, shrink=4 if attention == "full" else 1)
    config.learner.update(block_length=block, mask_low=0.1, mask_high=0.9, normaliser="length")
    config.learner.update(chunk_size=64, positions_per_chunk=2048)
    config.optimizer.update(lr=5e-4, warmup_steps=20, final_fraction=0.1)
    config.train.steps = 400
    config.checkpoint.every = 100
    config.log.every = 20
    config.eval.update(after_training=True, num_problems=1000, validation_problems=0)
    config.eval.batch_size = 250
    config.eval.block_lengths = (block, length) if attention == "full" else (block,)
    config.eval.policies = ("top_confidence:tokens_per_step=1|2", "threshold:threshold=0.5|0.9")
    config.eval.trained = ()
    return config


def _long():
    prompt_length, length, block = shipped_lengths("word_problems")
    config = recipes.config("state_sft")
    config.task.update(name="word_problems", prompt_length=prompt_length)
    config.data.update(gen_length=length, batch_size=8)
    config.model.path = "runs/early_word_problems/model"
    # Sixteen steps of a canvas in four states; semi_ar has four blocks.
    config.learner.update(method="trace", tokens_per_step=8, shrink=4, draws=4, block_length=32)
    config.learner.update(mask_low=0.1, mask_high=0.9, normaliser="length")
    config.learner.update(chunk_size=8, positions_per_chunk=2048)
    config.optimizer.update(lr=5e-4, warmup_steps=10, final_fraction=0.1)
    config.train.steps = 80
    config.checkpoint.every = 20
    config.log.every = 10
    config.eval.update(after_training=True, num_problems=200, validation_problems=0)
    config.eval.update(batch_size=50, block_lengths=(block, length), stop_at_end=True)
    config.eval.policies = ("threshold:threshold=0.9",)
    config.eval.trained = ()
    return config
