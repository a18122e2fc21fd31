"""TraceRL on a small denoiser that solves its task only in part: `:sudoku` or `:arithmetic`.

The start is an early training state of a model that ships with the package:

    python -m jax_unmask.train --config=configs/tiny_sft.py:sudoku --workdir=runs/early_sudoku \\
        --config.train.steps=400
    python -m jax_unmask.train --config=configs/tracerl.py:sudoku

The methods that TraceRL is compared with are one flag away, with the states per response that give
them its compute: `--config.learner.surrogate=random_masking --config.learner.draws=8`, `coupled`
with 4 pairs, `diffu_grpo`, `espo` with 4 pairs.
"""

from jax_unmask import config as defaults
from jax_unmask.shipped import shipped_lengths, shipped_models


def get_config(task: str = "sudoku"):
    if task not in shipped_models():
        known = " or ".join(f":{name}" for name in shipped_models())
        raise ValueError(f"tracerl.py:{task} is unknown; use {known}")
    prompt_length, length, block = shipped_lengths(task)
    config = defaults.tracerl()
    config.task.update(name=task, prompt_length=prompt_length, truncate_prompts=False)
    config.model.path = f"runs/early_{task}/model"
    config.model.update(dtype="float32", param_dtype="float32", remat=False)
    config.rollout.update(gen_length=length, block_length=length, temperature=1.0)
    config.rollout.policy = "threshold:threshold=0.9"
    config.rollout.update(prompts_per_step=32, group_size=8, slots=64)
    config.filter.update(low=0.1, high=0.9)
    # The canvas of arithmetic ends in padding, whose first token is the end of the text.
    config.learner.update(shrink=1, num_pads=1, minibatches=4, chunk_size=64)
    config.value.lr = 5e-4
    config.optimizer.update(lr=2e-4, warmup_steps=4)
    config.train.steps = 100
    config.checkpoint.every = 10
    config.eval.update(num_problems=1000, batch_size=250, block_lengths=(length, block))
    config.eval.policies = (
        "top_confidence:tokens_per_step=1|2|4",
        "threshold:threshold=0.5|0.7|0.9|0.95",
    )
    config.eval.trained = ()
    return config
