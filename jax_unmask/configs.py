"""Lists the experiment files that ship with the package.

jax-unmask configs
jax-unmask configs gsm8k
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("configs")
