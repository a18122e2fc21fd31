"""Trains whatever the config's recipe trains.

Running the same command again continues from the last checkpoint, bit for bit.

  jax-unmask train --config=quickstart --workdir=/tmp/quickstart
  jax-unmask train --config=gsm8k --workdir=runs/gsm8k --config.train.steps=100
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("train")
