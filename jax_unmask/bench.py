"""Measures speed.

jax-unmask bench --preset=tiny --batch_sizes=1,8,64
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("bench")
