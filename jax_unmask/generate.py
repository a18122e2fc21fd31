"""Fills canvases and prints them: `python -m jax_unmask.generate --model=sudoku --task=sudoku`."""

from jax_unmask.commands.generate import main

if __name__ == "__main__":
    main()
