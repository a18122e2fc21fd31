"""Converts a model between formats.

jax-unmask convert --source=HF_DIRECTORY --output=ORBAX_DIRECTORY
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("convert")
