"""An unmasking policy for LLaDA-8B-Instruct in full diffusion on GSM8K and MATH, with experts."""

from jax_unmask import recipes


def get_config():
    config = recipes.config("policy_grpo")
    config.task.name = "mixture"
    config.rollout.block_length = 256
    config.expert.count = 1
    # One epoch over 7,473 + 7,500 training problems, 16 prompts at a time.
    config.train.steps = 936
    config.eval.axes = ("task.name=gsm8k|math500",)  # Both halves, as published.
    config.eval.block_lengths = (256,)
    config.eval.trained = ("distribution=bernoulli_argmax",)
    return config
