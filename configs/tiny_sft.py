"""Trains a small denoiser that ships with the package: `:sudoku`, `:arithmetic`, `:countdown`."""

from jax_unmask import config as defaults


def get_config(task: str = "sudoku"):
    config = defaults.sft()
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
    else:
        raise ValueError(f"tiny_sft.py:{task} is unknown; use :sudoku, :arithmetic or :countdown")
    config.checkpoint.every = 500
    config.log.every = 20
    return config
