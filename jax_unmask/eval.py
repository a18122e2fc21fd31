"""Measures policies on held-out problems: `python -m jax_unmask.eval --config=... --workdir=DIR`.

Prints a table and writes results.jsonl, summary.md, frontier.png and report.html. Running the same
command again measures only what is missing. Several processes are joined as those of training are:
`launch/local.py -n 2 -- python -m jax_unmask.eval ...`.
"""

from jax_unmask.commands import command_line, eval

if __name__ == "__main__":
    command_line.run(eval.main, eval.define_flags)
