"""The published settings of arXiv 2512.09106, to measure policies in: `:NAME`.

NAME is MODEL_LENGTH_BLOCK or MODEL_LENGTH_BLOCK_TASK: llada or dream (LLaDA-8B-Instruct,
Dream-v0-Instruct-7B), a canvas of 256 or 512, blocks of 32 or full diffusion; gsm8k (if none is
named), math500, humaneval or mbpp. For example, a policy that was trained with configs/gsm8k.py, on
Dream and on canvases of twice the length:

    python -m jax_unmask.eval --config=configs/published.py:dream_512_32 --workdir=runs/transfer \\
        --checkpoint=runs/gsm8k

`:all` measures everything into one report; `--dry_run` lists it. `:scales` varies temperature and
scale (beta) of the trained policy at test time; `:pass_at_k` measures it under 16 seeds: the table
has pass@16. Policies are trained with configs/gsm8k.py, gsm8k_math.py (and :32) and kodcode.py.
"""

from jax_unmask import recipes

MODELS = {"llada": "GSAI-ML/LLaDA-8B-Instruct", "dream": "Dream-org/Dream-v0-Instruct-7B"}
LENGTHS = (256, 512)
BLOCKS = ("32", "full")
TASKS = ("gsm8k", "math500", "humaneval", "mbpp")
# How trained policies are used at test time.
_TRAINED = {
    "32": "distribution=bernoulli_argmax,temperature=0.5",
    "full": "distribution=bernoulli_argmax,temperature=1.0",
}
NAMES = tuple(
    f"{model}_{length}_{block}{task}"
    for model in MODELS
    for length in LENGTHS
    for block in BLOCKS
    for task in ("", *(f"_{task}" for task in TASKS))
)


def get_config(name: str = "llada_256_32"):
    if name == "all":
        config = get_config()
        models, tasks, lengths = map("|".join, (MODELS.values(), TASKS, map(str, LENGTHS)))
        config.eval.axes = (
            *(f"model.path={models}", f"task.name={tasks}"),
            f"rollout.gen_length={lengths}",
        )
        config.eval.block_lengths = (32, 0)
        config.eval.trained = (f"{_TRAINED['32']}@32", f"{_TRAINED['full']}@0")
        return config
    if name in ("scales", "pass_at_k"):
        config = get_config()
        config.eval.policies = ()
        if name == "scales":
            scales = "temperature=0.5|1.0,scale=0.25|0.5|1|2|4"
            config.eval.trained = (f"distribution=bernoulli_argmax,{scales}",)
        else:
            config.eval.seeds = tuple(range(16))
        return config
    if name not in NAMES:
        known = ", ".join(("all", "scales", "pass_at_k", *NAMES))
        raise ValueError(f"published.py:{name} is unknown; use one of {known}")
    model, length, block, task = (*name.split("_"), "gsm8k")[:4]
    block_length = int(length) if block == "full" else int(block)
    config = recipes.config("policy_grpo")
    config.task.name = task
    config.model.path = MODELS[model]
    config.rollout.update(gen_length=int(length), block_length=block_length)
    config.eval.block_lengths = (block_length,)
    config.eval.trained = (_TRAINED[block],)
    return config
