"""TraceRL of a published model with its published hyperparameters: `:MODEL,TASK`.

MODEL is llada, dream, sdar-4b or sdar-8b; TASK is gsm8k, math or code (KodCode's format):

    python -m jax_unmask.train --config=configs/tracerl_large.py:sdar-4b,math --config.task.path=DIR

Values are those of arXiv 2509.06949 (sections 5.1 and appendix B.3) and its public configurations.
`value.enabled=True` adds the value model at its published learning rate. `lora.rank=32` with
`model.param_dtype=bfloat16` and `rollout.slots=64` trains on one device of 80 GB; docs/scaling has
what other choices need.
"""

from jax_unmask import recipes

MODELS = {
    "llada": "GSAI-ML/LLaDA-8B-Instruct",
    "dream": "Dream-org/Dream-v0-Instruct-7B",
    "sdar-4b": "JetLM/SDAR-4B-Chat",
    "sdar-8b": "JetLM/SDAR-8B-Chat",
}
TASKS = {"gsm8k": "gsm8k", "math": "math", "code": "kodcode"}


def get_config(choice: str = "sdar-4b,math"):
    model, _, task = choice.partition(",")
    if model not in MODELS or task not in TASKS:
        raise ValueError(
            f"tracerl_large.py:{choice} is unknown; use :MODEL,TASK with a model of "
            f"{', '.join(MODELS)} and a task of {', '.join(TASKS)}"
        )
    config = recipes.config("tracerl")
    config.model.path = MODELS[model]
    config.task.name = TASKS[task]
    if model.startswith("sdar"):
        config.task.prompt_length = 784
        # Dynamic decoding: everything above 0.9, one token of a block of four at least.
        config.rollout.update(gen_length=2000, block_length=4, temperature=1.0, stop_at_end=True)
        config.rollout.policy = "dynamic:threshold=0.9,steps=4"
        config.rollout.update(prompts_per_step=128, group_size=32)
        # Exact with block attention; the published engine serves 256 texts at one time too.
        config.rollout.update(cache="block", slots=256)
        config.learner.update(shrink=1, normaliser="length")
        config.train.steps = 80
        # 256 states per optimiser step.
        config.learner.minibatches = 64
    else:
        config.rollout.update(prompts_per_step=32, group_size=8, block_length=32, temperature=0.8)
        config.learner.shrink = 8
        config.train.steps = 50
        if model == "dream":
            config.rollout.update(gen_length=1024, top_k=50, top_p=0.9)
    config.checkpoint.every = 10
    return config
