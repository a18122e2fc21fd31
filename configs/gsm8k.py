"""An unmasking policy for LLaDA-8B-Instruct on GSM8K, blocks of 32: the published hyperparameters.

One epoch over GSM8K alone; the paper's is over GSM8K and MATH, as in `gsm8k_math.py`.
"""

from jax_unmask import recipes


def get_config():
    config = recipes.config("policy_grpo")
    config.eval.block_lengths = (32,)
    config.eval.trained = ("distribution=bernoulli_argmax,temperature=0.5",)
    return config
