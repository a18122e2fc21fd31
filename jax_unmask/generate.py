"""Fills canvases and prints them.

jax-unmask generate --model=sudoku --task=sudoku --problem=3 --trace
jax-unmask generate --model=sudoku --policy=threshold:threshold=0.7 --prompt='1...2...3...4...='
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("generate")
