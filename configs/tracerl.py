"""TraceRL on a small denoiser that solves its task only in part: `:full` or `:block`.

Worked arithmetic, the whole canvas at a threshold of 0.5: the shipped model fills almost four
tokens per step and gets three problems in five right, because the authors of the worked solutions
differ in how much they write, and tokens that are drawn in one step disagree about the author.

    python -m jax_unmask.train --config=configs/tracerl.py --workdir=runs/tracerl

With block attention the start is an early training state, in blocks of 4:

    python -m jax_unmask.train --config=configs/tiny_block_sft.py --workdir=runs/block_arithmetic
    python -m jax_unmask.train --config=configs/tracerl.py:block --workdir=runs/tracerl_block

What TraceRL is compared with is one flag away, with the states per response that give it the same
compute: `--config.learner.surrogate=random_masking --config.learner.draws=2`, `coupled` with one
pair, `diffu_grpo` with 2 draws, `espo` with one pair. `--config.learner.shrink=1` trains the very
states that the rollout visited, and `--config.value.enabled=True` adds a value model.
"""

from jax_unmask import recipes
from jax_unmask.shipped import shipped_lengths


def get_config(attention: str = "full"):
    if attention not in ("full", "block"):
        raise ValueError(f"tracerl.py:{attention} is unknown; use :full or :block")
    prompt_length, length, _ = shipped_lengths("arithmetic")
    block = length if attention == "full" else 4
    config = recipes.config("tracerl")
    config.task.update(name="arithmetic", prompt_length=prompt_length, truncate_prompts=False)
    config.model.path = "arithmetic" if attention == "full" else "runs/block_arithmetic/model"
    config.model.update(dtype="float32", param_dtype="float32", remat=False)
    config.rollout.update(gen_length=length, block_length=block, temperature=1.0)
    threshold = 0.5 if attention == "full" else 0.3
    config.rollout.policy = f"threshold:threshold={threshold}"
    config.rollout.update(prompts_per_step=32, group_size=8, slots=64)
    config.filter.update(low=0.05, high=0.95, rounds=1)
    # The canvas ends in padding, whose first token is the end of the text.
    config.learner.update(num_pads=1, minibatches=1, chunk_size=64)
    # A response has three to five steps, a block of four has two.
    config.learner.shrink = 2 if attention == "full" else 1
    config.value.lr = 5e-4
    config.optimizer.update(lr=1e-4, schedule="cosine", final_fraction=0.1, b2=0.99)
    config.train.steps = 60
    config.checkpoint.every = 10
    config.eval.update(after_training=True, num_problems=1000, validation_problems=0)
    config.eval.batch_size = 250
    config.eval.block_lengths = (block,)
    config.eval.policies = (f"threshold:threshold={threshold}|0.9",)
    config.eval.trained = ()
    return config
