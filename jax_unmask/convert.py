"""Converts a model: `python -m jax_unmask.convert --source=HF_DIR --output=ORBAX_DIR`."""

from jax_unmask.commands.convert import main

if __name__ == "__main__":
    main()
