"""Plans a training run without its weights.

Counts parameters and bytes from shapes alone, and traces the programs of a step at full size, laid
out on the mesh of the config. With --devices (v5e-16, h100x8, ...) CPUs stand in for so many
devices. With --compile the programs are compiled ahead of time as well, which tells the memory of
their temporaries and the bytes that devices send each other.

  jax-unmask plan --config=gsm8k --devices=v5e-16
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("plan")
