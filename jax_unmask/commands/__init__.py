"""The commands, from flags to a run: `python -m jax_unmask.NAME` starts `commands.NAME`."""
