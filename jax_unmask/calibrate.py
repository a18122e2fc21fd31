"""Counts a policy's forwards, so that it can be asked for a number of them.

For policies that can be told an alpha. Afterwards `learned:DIR,nfe=8` asks for 8 forwards per
sequence on average. Only prompts are needed, no answers.

  jax-unmask calibrate --config=universal_policy --policy=DIR
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("calibrate")
