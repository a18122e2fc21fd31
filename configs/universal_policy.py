"""Trains one policy for every alpha, without tables of positions or tokens.

`:sudoku`, `:arithmetic`, `:countdown`, `:word_problems` train it against that shipped denoiser,
`:all` against all of them, `:all-sudoku` or `:all-sudoku-countdown` against all but these. In full
diffusion.

`:all-word_problems,sudoku=DIR,arithmetic=DIR,countdown=DIR` teaches one policy what others do, each
on its task: they are told the same alpha, and every action of theirs is imitated. In place of a
trained policy's directory (write ./DIR) or name any other may stand in its notation, such as a rule
of one's own, with at most one setting. `:word_problems` alone is taught so, by a rule.
"""

import pathlib
import runpy

from jax_unmask import recipes
from jax_unmask.shipped import shipped_models, shipped_policies

IMITATION = ("imitation", "imitation_steps", "imitated")
_TINY_POLICY = runpy.run_path(str(pathlib.Path(__file__).with_name("tiny_policy.py")))


def get_config(tasks: str = "all"):
    tasks, *pairs = tasks.split(",")
    named, *without = tasks.split("-")
    if pairs and (named != "all" or not all("=" in pair for pair in pairs)):
        raise ValueError(
            f"universal_policy.py:{tasks},{','.join(pairs)}: teachers are for :all and :all-TASK, "
            "as in :all-word_problems,sudoku=DIR,..."
        )
    teachers = dict(pair.split("=", 1) for pair in pairs)
    if {named, *without} - {"all", *shipped_models()}:
        known = ", ".join(f":{name}" for name in shipped_models())
        raise ValueError(
            f"universal_policy.py:{tasks} is unknown; use {known}, :all, or :all-TASK without one"
        )
    chosen = [name for name in shipped_models() if name not in without]
    if not chosen:
        raise ValueError(f"universal_policy.py:{tasks} leaves out every task; keep one")
    config = _TINY_POLICY["get_config"](chosen[0] if named == "all" else tasks)
    # What every denoiser, canvas and vocabulary has: the two largest probabilities, entropy, place
    # in the order of confidence, and which positions propose the same token.
    config.policy.network.update(token_buckets=0, position_embedding=0, pair_attention=0, logs=True)
    config.policy.network.alphas = (0.03, 100.0)
    config.eval.trained = (
        "distribution=threshold,alpha=0.03|0.1|0.3|1.0|3.0|10.0|30.0|100.0",
        "distribution=threshold,alpha=100.0,scale=8|64|512|4096|1e9",  # Faster than any alpha.
    )
    config.eval.shipped = (f"{config.task.name}-seed*", "universal")
    if named == "arithmetic":
        config.train.steps = 450
    if named == "word_problems":
        _taught(config, "frontier_told")
        config.rollout.update(prompts_per_step=32, slots=24)
        config.learner.update(minibatches=8, passes=8)
        config.optimizer.warmup_steps = 2
        config.train.steps = 30
    if named != "all":
        return config
    both = recipes.config("policy_environments")
    both.update({**config.to_dict(), "recipe": both.recipe})
    both.environments = tuple(_environment(name, teachers.get(name)) for name in chosen)
    if teachers:
        if set(teachers) != set(chosen):
            raise ValueError(
                f"universal_policy.py has teachers for {', '.join(teachers)}; give one for each of "
                f"{', '.join(chosen)}, as in sudoku=DIR"
            )
        _taught(both, both.expert.policy)
        both.learner.update(minibatches=4, passes=16)
        both.train.steps = 50
    return both


def _taught(config, teacher: str) -> None:
    """Settings of policies that imitate whatever another one does."""
    config.rollout.group_size = 2  # What counts is the teacher's rollout.
    length = config.rollout.gen_length
    config.expert.update(count=1, policy=teacher, block_length=length)
    config.expert.update(imitation=20.0, imitation_steps=1_000_000, imitated="all")
    config.learner.entropy_coefficient = 0.0
    config.optimizer.warmup_steps = 16


def _environment(task: str, teacher: str | None) -> str:
    """The settings in which the trainings on each task alone differ."""
    alone = _TINY_POLICY["get_config"](task)
    if teacher is not None:
        prompts = {"arithmetic": 24, "word_problems": 12}
        alone.rollout.update(prompts_per_step=prompts.get(task, 48))
        # Directories and names on the hub have a slash; notations have none before their settings.
        is_learned = teacher in shipped_policies() or "/" in teacher.partition(":")[0]
        policy = f"learned:{teacher},distribution=threshold" if is_learned else teacher
        _taught(alone, policy)
        if task == "word_problems":
            alone.rollout.slots = 24
    return " ".join(
        f"{group}.{name}={alone[group][name]}"
        for group, names in {
            "task": ("name", "prompt_length"),
            "model": ("path",),
            "rollout": ("gen_length", "block_length", "prompts_per_step", "slots"),
            "expert": ("count", "policy", "block_length", *IMITATION),
        }.items()
        for name in names
    )
