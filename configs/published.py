"""The published settings of arXiv 2512.09106, to measure policies in: `:NAME`.

NAME is MODEL_LENGTH_BLOCK: llada or dream (LLaDA-8B-Instruct, Dream-v0-Instruct-7B), a canvas of
256 or 512, blocks of 32 or full diffusion. For example, a policy that was trained with
configs/gsm8k.py, on Dream and on canvases of twice the length:

    python -m jax_unmask.eval --config=configs/published.py:dream_512_32 --workdir=runs/transfer \\
        --checkpoint=runs/gsm8k --config.task.path=/data/gsm8k

`:all` measures all eight into one report.
"""

from jax_unmask import recipes

MODELS = {"llada": "GSAI-ML/LLaDA-8B-Instruct", "dream": "Dream-org/Dream-v0-Instruct-7B"}
LENGTHS = (256, 512)
BLOCKS = ("32", "full")
# How trained policies are used at test time.
_TRAINED = {
    "32": "distribution=bernoulli_argmax,temperature=0.5",
    "full": "distribution=bernoulli_argmax,temperature=1.0",
}
NAMES = tuple(f"{m}_{length}_{block}" for m in MODELS for length in LENGTHS for block in BLOCKS)


def get_config(name: str = "llada_256_32"):
    if name == "all":
        config = get_config()
        models, lengths = "|".join(MODELS.values()), "|".join(map(str, LENGTHS))
        config.eval.axes = (f"model.path={models}", f"rollout.gen_length={lengths}")
        config.eval.block_lengths = (32, 0)
        config.eval.trained = (f"{_TRAINED['32']}@32", f"{_TRAINED['full']}@0")
        return config
    if name not in NAMES:
        raise ValueError(f"published.py:{name} is unknown; use all or one of {', '.join(NAMES)}")
    model, length, block = name.split("_")
    block_length = int(length) if block == "full" else int(block)
    config = recipes.config("policy_grpo")
    config.model.path = MODELS[model]
    config.rollout.update(gen_length=int(length), block_length=block_length)
    config.eval.block_lengths = (block_length,)
    config.eval.trained = (_TRAINED[block],)
    return config
