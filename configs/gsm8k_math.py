"""An unmasking policy for LLaDA-8B-Instruct on GSM8K and MATH: `:full` (the default) or `:32`.

Full diffusion is steered by an expert in each group; blocks of 32 need none.
"""

from jax_unmask import recipes


def get_config(blocks: str = "full"):
    if blocks not in ("full", "32"):
        raise ValueError(f"gsm8k_math.py:{blocks} is unknown; use full or 32")
    config = recipes.config("policy_grpo")
    config.task.name = "mixture"
    # One epoch over 7,473 + 7,500 training problems, 16 prompts at a time.
    config.train.steps = 936
    config.eval.axes = ("task.name=gsm8k|math500",)  # Both halves, as published.
    config.rollout.block_length = 32
    config.eval.block_lengths = (32,)
    config.eval.trained = ("distribution=bernoulli_argmax,temperature=0.5",)
    if blocks == "full":
        config.rollout.block_length = 256
        config.expert.count = 1
        config.eval.block_lengths = (256,)
        config.eval.trained = ("distribution=bernoulli_argmax",)
    return config
