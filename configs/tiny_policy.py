"""Trains an unmasking policy against a shipped denoiser.

`:sudoku`, `:arithmetic`, `:countdown` or, on a canvas of 128, `:word_problems`.
"""

from jax_unmask import recipes
from jax_unmask.shipped import shipped_lengths, shipped_models

HEURISTICS = (
    "random:tokens_per_step=1|2|4|8",
    "left_to_right:tokens_per_step=1|2|4",
    "top_confidence:tokens_per_step=1|2|3|4|8",
    "margin:tokens_per_step=1|2|4",
    "threshold:threshold=0.3..0.95/0.05|0.98|0.99",
    "factor:factor=0.1|0.25|0.5..2.0/0.25|2.5|3.0",
    # Finer around ln 2, the entropy of a choice between two equal tokens.
    "entropy_bounded:gamma=0.01|0.05|0.1..1.0/0.1|0.65|0.69|0.72|0.75|1.25|1.5|2.0|3.0",
    "conflict_free:threshold=0.3|0.5|0.7|0.9",
    "frontier_threshold:threshold=0.5|0.7|0.9|0.95|0.98",
)


def get_config(task: str = "sudoku"):
    if task not in shipped_models():
        known = " or ".join(f":{name}" for name in shipped_models())
        raise ValueError(f"tiny_policy.py:{task} is unknown; use {known}")
    prompt_length, length, block = shipped_lengths(task)
    config = recipes.config("policy_grpo")
    config.task.name = task
    config.task.prompt_length = prompt_length
    config.task.truncate_prompts = False
    config.model.update(path=task, dtype="float32", param_dtype="float32")
    config.rollout.update(gen_length=length, block_length=length)
    config.rollout.update(prompts_per_step=24 if task == "arithmetic" else 64, group_size=8)
    config.rollout.slots = 64
    # Beyond the published observations: the network also sees the runner-up's probability, the
    # entropy, which token is proposed, where in the canvas a position lies, and its place in the
    # order of confidence; its attention can follow equal proposals, that order and pairs of places.
    config.policy.network.update(hidden_dim=64, feedforward_dim=128, time_embed_dim=32, num_heads=4)
    config.policy.network.update(top_k=2, entropy=True, token_buckets=64, position=True, rank=True)
    config.policy.network.update(position_embedding=length, pair_attention=length)
    config.policy.network.candidate_attention = (4.0, 4.0, 0.0, 0.0)
    config.policy.network.rank_attention = (4.0, 0.0, 4.0, 0.0)
    config.learner.update(entropy_coefficient=0.005, chunk_size=512, minibatches=2)
    config.learner.passes = 1
    config.optimizer.update(lr=2e-3, warmup_steps=10, final_fraction=0.1, grad_clip=1.0)
    config.optimizer.weight_decay = 0.0
    if task == "arithmetic":
        # Hardly any answer of an untrained policy is right, so groups need a member that is.
        config.expert.update(count=1, policy="entropy_bounded:gamma=0.1", block_length=block)
    if task == "word_problems":
        # Tables of 128 positions and 182 tokens learn too slowly; logs tell small doubts apart.
        config.policy.network.update(token_buckets=0, position_embedding=0, pair_attention=0)
        config.policy.network.logs = True
        # Some rows take ten times as long as others, so few are rolled out at a time.
        config.rollout.update(prompts_per_step=8, slots=16)
        # None of an untrained policy's answers is right, and at this learning rate GRPO destroys
        # what it has learned: it imitates (docs/experiments/told_alpha.md has GRPO after that).
        rule = "frontier_threshold:threshold=0.98,reach=32"
        config.expert.update(count=1, policy=rule, block_length=length)
        config.expert.update(imitation=20.0, imitation_steps=150)
    config.train.steps = 150
    config.checkpoint.every = 10
    config.eval.policies = HEURISTICS
    config.eval.update(
        num_problems=2000, batch_size=64, block_lengths=(length, block), seeds=(0, 1, 2)
    )
    config.eval.update(trained=("distribution=bernoulli_argmax", "distribution=threshold"))
    config.eval.validation_problems = 500
    if task == "countdown":
        config.policy.network.token_buckets = 256  # A token for each number.
    if task == "word_problems":
        config.eval.update(num_problems=256, validation_problems=128)
    return config
