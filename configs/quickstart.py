"""Minutes on a laptop: trains a policy on many-solution Sudoku and compares it with heuristics."""

import pathlib
import runpy

_TINY_POLICY = runpy.run_path(str(pathlib.Path(__file__).with_name("tiny_policy.py")))


def get_config():
    config = _TINY_POLICY["get_config"]("sudoku")
    # Enough weight on speed to leave the heuristics behind within these few steps.
    config.reward.alpha = 3.0
    config.train.steps = 75
    config.eval.update(after_training=True, num_problems=1000, batch_size=64, seeds=(0,))
    config.eval.policies = (
        "random:tokens_per_step=1|2|4|8",
        "left_to_right:tokens_per_step=1|2|4",
        "top_confidence:tokens_per_step=1|2|4|8",
        "margin:tokens_per_step=1|2|4",
        "threshold:threshold=0.3|0.5|0.6|0.7|0.75|0.8|0.85|0.9|0.95|0.98",
        "factor:factor=0.1|0.25|0.5|0.75|1.0|1.5",
        "entropy_bounded:gamma=0.05|0.1|0.25|0.5|0.6|0.65|0.69|0.75|1.0",
    )
    config.eval.shipped = ("sudoku-full-*", "sudoku-semi-*@4")
    config.eval.trained = ("distribution=bernoulli_argmax",)
    return config
