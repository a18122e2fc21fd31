"""Counts a policy's forwards: `python -m jax_unmask.calibrate --config=... --policy=DIR`.

For policies that can be told an alpha. Afterwards `learned:DIR,nfe=8` asks for 8 forwards per
sequence on average. Only prompts are needed, no answers.
"""

from jax_unmask.commands import calibrate, command_line

if __name__ == "__main__":
    command_line.run(calibrate.main, calibrate.define_flags)
