"""Shares models and policies: `python -m jax_unmask.hub push runs/x/policy --name=OWNER/NAME`."""

from jax_unmask.commands.hub import main

if __name__ == "__main__":
    main()
