"""Defaults that several recipes share: task, checkpoints, logs, evaluation."""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def common(recipe: str) -> ConfigDict:
    """What every recipe but a curriculum has."""
    config = ConfigDict()
    config.recipe = recipe
    config.seed = 0
    config.task = ConfigDict(
        {
            "name": "gsm8k",
            # Directory or file of the data; not used by tasks that generate their problems.
            "path": placeholder(str),
            # Further settings of the task, such as "difficulty=level:3..5"; of a task of a mixture
            # as "math.equivalence=symbolic".
            "settings": (),
            # Tasks of task "mixture", with weights as in "gsm8k=2".
            "mixture": ("gsm8k", "math"),
            # Read the data through TensorFlow Datasets from this data_dir instead.
            "tfds_data_dir": placeholder(str),
            "prompt_length": 200,
            # Shorter lengths to which prompts are padded where they fit: in evaluations each
            # problem, in training each batch. Every length compiles its own programs.
            "prompt_buckets": (),
            # Keep the last `prompt_length` tokens of longer prompts, as published; otherwise a
            # prompt over its budget is an error.
            "truncate_prompts": True,
        }
    )
    # Devices: copies of the model, parts of its weights (each of them also with its part of the
    # batch), and parts of single matrix products. Their product is the number of devices of all
    # processes; -1 stands for what the others leave.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.checkpoint = ConfigDict(
        {
            "every": 100,
            "keep_latest": 2,
            # Beside them, if `best_metric` names the metric that ranks them.
            "keep_best": 1,
            "best_metric": "",
            "best_mode": "max",
            # Seconds that the scheduler grants between SIGTERM and SIGKILL. A run that can't finish
            # and save its step in that time leaves by itself and says so. 0: as long as it takes.
            "grace_seconds": 0.0,
        }
    )
    config.watch = ConfigDict(
        {
            # A phase of a step that takes longer, compilation included, is reported with the
            # process that hangs and the stacks of all. 0: never.
            "stall_seconds": 1800.0,
            # End the processes then (status 124), for launchers that start them again.
            "end_stalled": False,
            # Steps to trace for TensorBoard, from the third of this process on.
            "profile_steps": 0,
        }
    )
    config.log = ConfigDict({"every": 1, "tensorboard": True, "wandb": False})
    return config


def evaluation() -> ConfigDict:
    """What `jax_unmask.eval` measures."""
    return ConfigDict(
        {
            # After training, evaluate the trained policy and the heuristics of `policies`.
            "after_training": False,
            "split": "test",
            "prompt_style": "evaluation",
            "num_problems": 1024,
            # Problems that the denoiser serves at one time; one that is done makes room for the
            # next.
            "batch_size": 128,
            # 0 stands for the whole canvas.
            "block_lengths": (32, 256),
            # Further things to vary, as "KEY=A|B": models, tasks, canvas lengths (see
            # evaluation/axes.py). All combinations are measured, into one report.
            "axes": (),
            # Caches of the rollouts, each measured; none given: that of `rollout.cache`.
            "caches": (),
            # End a row with the block that holds the end of its text.
            "stop_at_end": False,
            # "name:setting=value": a heuristic, or "learned:DIR" for a trained policy; several
            # settings as a|b|c or low..high/step, one block length as a trailing @32 (see
            # evaluation/grid.py).
            "policies": (
                "random:tokens_per_step=1|2|4|8",
                "left_to_right:tokens_per_step=1|2|4|8",
                "top_confidence:tokens_per_step=1|2|4|8",
                "margin:tokens_per_step=1|2|4|8",
                "threshold:threshold=0.1..0.9/0.05|0.925|0.95|0.97|0.98|0.99|0.995|0.999",
                "factor:factor=0.05|0.1|0.2|0.3|0.4|0.5|0.6|0.75|1.0|1.25|1.5|2.0|3.0",
                "entropy_bounded:gamma=0.01|0.02|0.05|0.1|0.2|0.3|0.4|0.5|0.75|1.0|1.5|2.0|3.0",
            ),
            # Names of policies that ship with the package, or patterns of names ("sudoku-*@16").
            "shipped": (),
            # Test-time modes of trained and shipped policies, as `learned` settings.
            "trained": ("temperature=1.0",),
            # Seeds of what policies draw; those that draw nothing are measured once.
            "seeds": (0,),
            # Problems of the validation split on which heuristic settings are chosen; 0: none.
            "validation_problems": 0,
            # Problems of the report's examples and trajectory viewer, and the policies shown there,
            # in the notation of `policies`; none: the trained one, and the best at its speed.
            "examples": 8,
            "viewer": (),
            # Training runs whose curves the report shows: workdirs, metrics files, or patterns.
            "curves": (),
        }
    )
