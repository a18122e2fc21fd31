"""An unmasking policy for LLaDA-8B-Instruct on GSM8K, blocks of 32: the published recipe."""

from jax_unmask import config as defaults


def get_config():
    config = defaults.policy_grpo()
    config.eval.block_lengths = (32,)
    config.eval.trained = ("temperature=0.5",)
    return config
