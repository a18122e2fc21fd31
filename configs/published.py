"""The published settings of arXiv 2512.09106, to measure policies in: `:NAME`.

NAME is MODEL_LENGTH_BLOCK: llada or dream (LLaDA-8B-Instruct, Dream-v0-Instruct-7B), a canvas of 256
or 512, blocks of 32 or full diffusion. For example, a policy that was trained with configs/gsm8k.py,
on Dream and on canvases of twice the length:

    python -m jax_unmask.eval --config=configs/published.py:dream_512_32 --workdir=runs/transfer \\
        --checkpoint=runs/gsm8k --config.task.path=/data/gsm8k

The same settings together, in one report:

    python -m jax_unmask.eval --config=configs/published.py:llada_256_32 --workdir=runs/all \\
        --config.task.path=/data/gsm8k --config.eval.block_lengths='(32, 0)' \\
        --config.eval.axes="('model.path=GSAI-ML/LLaDA-8B-Instruct|Dream-org/Dream-v0-Instruct-7B', 'rollout.gen_length=256|512')"
"""

from jax_unmask import config as defaults

MODELS = {"llada": "GSAI-ML/LLaDA-8B-Instruct", "dream": "Dream-org/Dream-v0-Instruct-7B"}
LENGTHS = (256, 512)
BLOCKS = ("32", "full")
NAMES = tuple(f"{m}_{length}_{block}" for m in MODELS for length in LENGTHS for block in BLOCKS)


def get_config(name: str = "llada_256_32"):
    if name not in NAMES:
        raise ValueError(f"published.py:{name} is unknown; use one of {', '.join(NAMES)}")
    model, length, block = name.split("_")
    block_length = int(length) if block == "full" else int(block)
    config = defaults.policy_grpo()
    config.model.path = MODELS[model]
    config.rollout.update(gen_length=int(length), block_length=block_length)
    config.eval.block_lengths = (block_length,)
    # Test-time temperature of trained policies.
    config.eval.trained = ("temperature=1.0" if block == "full" else "temperature=0.5",)
    config.eval.num_problems = 1319
    return config
