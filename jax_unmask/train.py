"""Trains whatever the config's recipe trains: `python -m jax_unmask.train --config=...`.

Running the same command again continues from the last checkpoint, bit for bit.
"""

from jax_unmask.commands import command_line, train

if __name__ == "__main__":
    command_line.run(train.main, train.define_flags)
