"""Runs tasks of lm-evaluation-harness: `python -m jax_unmask.harness --model=... --tasks=...`."""

from jax_unmask.commands.harness import main

if __name__ == "__main__":
    main()
