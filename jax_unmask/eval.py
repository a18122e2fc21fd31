"""Measures policies on held-out problems.

Prints a table and writes results.jsonl, summary.md, frontier.png and report.html. Running the same
command again measures only what is missing. Several processes are joined as those of training are
(launch/local.py).

  jax-unmask eval --config=quickstart --workdir=/tmp/measured --checkpoint=/tmp/quickstart
  jax-unmask eval --config=gsm8k --workdir=runs/measured --dry_run
"""

from jax_unmask.console import run

if __name__ == "__main__":
    run("eval")
