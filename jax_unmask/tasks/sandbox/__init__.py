"""Runs untrusted programs against tests without harm to the host.

    with Sandbox() as sandbox:
        sandbox.run([Job("def f(x): return x + 1", ("assert f(1) == 2",))])[0].right  # True

`boxes.ENFORCED` and `boxes.NOT_ENFORCED` state what a box does.
"""

from jax_unmask.tasks.sandbox.boxes import ENFORCED, KINDS, NOT_ENFORCED, SandboxUnavailable
from jax_unmask.tasks.sandbox.service import Job, Limits, Outcome, Sandbox, outcome, shared

__all__ = [
    "ENFORCED",
    "KINDS",
    "NOT_ENFORCED",
    "Job",
    "Limits",
    "Outcome",
    "Sandbox",
    "SandboxUnavailable",
    "outcome",
    "shared",
]
