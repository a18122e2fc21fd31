"""Minutes on a laptop: a policy for every speed on many-solution Sudoku, against heuristics.

The policy is told alpha, the weight of forwards in the reward, so one training gives a whole
frontier of accuracy against forwards.
"""

import pathlib
import runpy

_TOLD_ALPHA = runpy.run_path(str(pathlib.Path(__file__).with_name("universal_policy.py")))


def get_config():
    config = _TOLD_ALPHA["get_config"]("sudoku")
    config.policy.network.alphas = (0.1, 30.0)
    config.train.steps = 100
    config.eval.update(after_training=True, num_problems=1000, batch_size=64, seeds=(0,))
    config.eval.update(block_lengths=(16,), validation_problems=0)
    config.eval.policies = (
        "random:tokens_per_step=1|2|4|8",
        "left_to_right:tokens_per_step=1|2|4",
        "top_confidence:tokens_per_step=1|2|4|8",
        "margin:tokens_per_step=1|2|4",
        "threshold:threshold=0.3|0.5|0.6|0.7|0.75|0.8|0.85|0.9|0.95|0.98",
        "factor:factor=0.1|0.25|0.5|0.75|1.0|1.5",
        "entropy_bounded:gamma=0.05|0.1|0.25|0.5|0.6|0.65|0.69|0.75|1.0",
    )
    config.eval.shipped = ("universal",)
    config.eval.trained = ("distribution=threshold,alpha=0.1|0.3|1.0|3.0|10.0|30.0",)
    return config
