"""An unmasking policy for LLaDA-8B-Instruct on KodCode, measured on HumanEval and MBPP."""

from jax_unmask import recipes


def get_config():
    config = recipes.config("policy_grpo")
    config.task.update(name="kodcode", prompt_length=512)
    config.eval.axes = ("task.name=humaneval|mbpp",)
    config.eval.block_lengths = (32,)
    config.eval.trained = ("distribution=bernoulli_argmax,temperature=0.5",)
    return config
