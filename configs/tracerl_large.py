"""TraceRL of a published model with its published hyperparameters: `:MODEL,TASK`.

MODEL is llada, dream, sdar-1.7b, sdar-4b, sdar-8b, trado-4b, trado-8b or trado-8b-thinking. TASK is
math (the published set, MATH's levels 3 to 5), math-levels (the same levels of a copy of MATH
itself), gsm8k or code (PrimeIntellect's problems, tested by standard input and output):

    python -m jax_unmask.train --config=configs/tracerl_large.py:sdar-4b,math

Values are those of arXiv 2509.06949 (its sections, "paper") and of the public configurations
("dLLM-RL", by the names of their files); lines without a source are ours. `value.enabled=True` adds
the value model at its published learning rate (dLLM-RL, multinode with value: twice the optimiser
steps, `learner.minibatches=128`). `lora.rank=32` with `model.param_dtype=bfloat16`,
`rollout.slots=64` and `learner.chunk_size=2` trains on one device of 80 GB; docs/scaling has what
other choices need.
"""

from jax_unmask import recipes

MODELS = {
    "llada": "GSAI-ML/LLaDA-8B-Instruct",
    "dream": "Dream-org/Dream-v0-Instruct-7B",
    "sdar-1.7b": "JetLM/SDAR-1.7B-Chat",
    "sdar-4b": "JetLM/SDAR-4B-Chat",
    "sdar-8b": "JetLM/SDAR-8B-Chat",
    "trado-4b": "Gen-Verse/TraDo-4B-Instruct",
    "trado-8b": "Gen-Verse/TraDo-8B-Instruct",
    "trado-8b-thinking": "Gen-Verse/TraDo-8B-Thinking",
}
# Name, data, and where the test split lies: paper, section 5.1; dLLM-RL, data/.
TASKS = {
    "math": ("math", "hub:Gen-Verse/MATH_train", "hub:HuggingFaceH4/MATH-500"),
    "math-levels": ("math", None, "hub:HuggingFaceH4/MATH-500"),
    "gsm8k": ("gsm8k", None, None),
    "code": ("primeintellect", "hub:Gen-Verse/PrimeIntellect", "hub:Gen-Verse/LiveCodeBench"),
}


def get_config(choice: str = "sdar-4b,math"):
    model, _, task = choice.partition(",")
    if model not in MODELS or task not in TASKS:
        raise ValueError(
            f"tracerl_large.py:{choice} is unknown; use :MODEL,TASK with a model of "
            f"{', '.join(MODELS)} and a task of {', '.join(TASKS)}"
        )
    config = recipes.config("tracerl")
    config.model.path = MODELS[model]
    _set_task(config, task, "boxed" if model in ("llada", "dream") else "step_by_step")
    if model in ("llada", "dream"):
        _set_full_attention(config, model)
    else:
        _set_block_attention(config)
    if model == "trado-8b-thinking":
        _set_thinking(config, task)
    config.optimizer.lr = 1e-6  # Paper, B.3; dLLM-RL, all.
    config.optimizer.update(b1=0.9, b2=0.999, weight_decay=0.0, grad_clip=1.0)  # dLLM-RL, all.
    config.learner.update(clip=0.2, beta=0.01, kl="k3", num_pads=0)  # Paper, B.3; dLLM-RL, all.
    config.learner.chunk_size = 32  # A state on each of 32 devices, as published; or more on fewer.
    config.value.lr = 5e-6  # dLLM-RL, all with value.
    config.checkpoint.every = 10  # dLLM-RL, all: save_every.
    config.eval.every = 10  # dLLM-RL, all: eval_every.
    config.eval.seeds = (0, 1, 2)  # Paper, B.3: the mean of three answers.
    config.eval.stop_at_end = True
    return config


def _set_task(config, task: str, style: str) -> None:
    name, path, tests = TASKS[task]
    config.task.update(name=name, path=path)
    settings = [] if tests is None else [f"test_path={tests}"]
    if task == "code":
        settings.append("partial=true")  # Paper, 5.1: the share of tests passed.
        config.filter.update(low=0.0, high=1.0)  # dLLM-RL: whatever is not all alike.
    else:
        settings.append(f"prompt_style={style}")  # dLLM-RL, sample/.
        config.filter.update(low=0.2, high=0.8)  # Paper, B.3; dLLM-RL, reward/.
        config.reward.limit_margin = 5  # dLLM-RL, reward/.
    if name == "math":
        settings.append("equivalence=symbolic")  # dLLM-RL, reward/.
    if task == "math-levels":
        settings.append("difficulty=level:3..5")  # Paper, 5.1.
    config.task.settings = tuple(settings)


def _set_block_attention(config) -> None:
    """SDAR and TraDo: dLLM-RL, multinode_rl_sdar and multinode_rl_trado."""
    config.task.prompt_length = 784
    # Dynamic decoding: everything above 0.9, one token of a block of four at least. Paper, 5.1.3.
    config.rollout.policy = "dynamic:threshold=0.9,steps=4"
    config.rollout.update(gen_length=2000, block_length=4, temperature=1.0, stop_at_end=True)
    config.rollout.update(prompts_per_step=128, group_size=32)  # Paper, B.3.
    # Exact with block attention. The published engine serves 256 texts at one time (paper, B.3).
    config.rollout.update(cache="block", slots=256)
    # All tokens weigh alike (dLLM-RL: the constant length).
    config.learner.update(shrink=1, normaliser="length")
    # 4,096 responses in up to four states: 256 states per optimiser step, 1 x 8 on 32 devices.
    config.learner.minibatches = 64
    config.train.steps = 80
    config.eval.block_lengths = (4,)
    # Measured without chance as well: eval.policies=("top_confidence",), rollout.temperature=0.
    config.eval.policies = (config.rollout.policy,)
    config.eval.batch_size = 256


def _set_full_attention(config, model: str) -> None:
    """LLaDA and Dream: dLLM-RL, rl_llada and rl_dream."""
    config.task.prompt_length = 512
    config.rollout.update(prompts_per_step=32, group_size=8, gen_length=512)
    config.rollout.update(block_length=32, temperature=0.8)
    config.rollout.policy = "top_confidence:tokens_per_step=1"
    config.rollout.cache = "prefix:horizon=128"  # Paper, B.3.
    config.learner.update(shrink=8, normaliser="step")  # Paper, eq. 3.
    # 2,048 states per optimiser step, 2 x 128 on 8 devices, of 256 responses in 64 states each.
    config.learner.minibatches = 8
    config.train.steps = 50
    config.eval.block_lengths = (32,)
    config.eval.policies = ("dynamic:threshold=0.95", "top_confidence:tokens_per_step=1")
    config.eval.axes = ("rollout.temperature=0.1", "rollout.gen_length=1024")
    if model == "dream":
        config.rollout.update(gen_length=1024, top_k=50, top_p=0.9)
        config.learner.minibatches = 16  # In 128 states each.
        config.eval.block_lengths = (4, 32)
        config.eval.policies = ("dynamic:threshold=0.95@4", "top_confidence:tokens_per_step=1@32")
        config.eval.axes = (
            *("rollout.temperature=0.1", "rollout.gen_length=1600"),
            *("rollout.top_k=40", "rollout.top_p=0.95"),
        )


def _set_thinking(config, task: str) -> None:
    """TraDo-8B-Thinking: no configuration of its training is public; lengths of its evaluation."""
    config.rollout.gen_length = 30_000  # dLLM-RL, trado_eval_thinking.
    config.rollout.slots = 32
    config.eval.batch_size = 32
    if task != "code":
        style = "prompt_style=thinking"  # dLLM-RL, sample/: <think> opens the response.
        others = [each for each in config.task.settings if not each.startswith("prompt_style")]
        config.task.settings = (*others, style)
