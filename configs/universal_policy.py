"""Trains one policy for every alpha, without tables of positions or tokens.

`:sudoku`, `:arithmetic`, `:countdown`: against that shipped denoiser.
"""

import pathlib
import runpy

_TINY_POLICY = runpy.run_path(str(pathlib.Path(__file__).with_name("tiny_policy.py")))


def get_config(task: str = "sudoku"):
    config = _TINY_POLICY["get_config"](task)
    # What every denoiser, canvas and vocabulary has: the two largest probabilities, entropy, place
    # in the order of confidence, and which positions propose the same token.
    config.policy.network.update(token_buckets=0, position_embedding=0, pair_attention=0)
    config.policy.network.alphas = (0.1, 30.0)
    config.eval.update(trained=("distribution=threshold,alpha=0.1|0.3|1.0|3.0|10.0|30.0",))
    return config
