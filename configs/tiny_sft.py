"""Trains a small denoiser: `:sudoku`, `:arithmetic` and `:countdown` ship with the package.

`:word_problems` (0.7 million parameters, canvases of 128) takes a day of two cores.
"""

from jax_unmask import recipes


def get_config(task: str = "sudoku"):
    config = recipes.config("sft")
    config.task.name = task
    # Half or a quarter of the rows look like a semi-autoregressive sampler's canvas. Without them a
    # small model learns to copy tokens from further right instead of working them out.
    config.masking.suffix_target = "block"
    config.masking.max_weight = 5.0
    if task == "sudoku":
        config.task.prompt_length = 17
        config.data.gen_length = 16
        config.train.steps = 3000
        # Three layers do not look far enough ahead to fill row after row: 94 % where five get 97 %.
        config.model.num_layers = 5
        # On 33 positions the usual base leaves half of the rotary frequencies without a turn.
        config.model.rope_theta = 100.0
        config.masking.suffix_fraction = 0.25
        config.masking.suffix_block_length = 4
    elif task == "arithmetic":
        config.task.prompt_length = 17
        config.data.gen_length = 32
        config.data.batch_size = 64
        config.model.intermediate_size = 256
        config.train.steps = 12000
        config.masking.suffix_fraction = 0.5
        config.masking.suffix_block_length = 8
    elif task == "countdown":
        config.task.prompt_length = 8
        config.data.gen_length = 8
        config.data.batch_size = 64
        config.model.update(hidden_size=128, num_layers=4, intermediate_size=256, rope_theta=100.0)
        config.model.number_embeddings = True
        config.train.steps = 8000
        config.optimizer.update(schedule="stable", lr=2e-3)
        config.masking.suffix_fraction = 0.25
        config.masking.suffix_block_length = 4
    elif task == "word_problems":
        config.task.prompt_length = 112
        config.data.gen_length = 128
        config.data.batch_size = 32
        config.model.update(hidden_size=128, num_layers=4, intermediate_size=256, max_length=384)
        config.model.number_embeddings = True
        config.train.steps = 40000
        config.optimizer.update(schedule="stable", lr=2e-3)
        config.masking.suffix_fraction = 0.5
        config.masking.suffix_block_length = 16
    else:
        raise ValueError(
            f"tiny_sft.py:{task} is unknown; use :sudoku, :arithmetic, :countdown or :word_problems"
        )
    config.checkpoint.every = 500
    config.log.every = 20
    return config
