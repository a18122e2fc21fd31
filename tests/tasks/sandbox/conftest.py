"""Boxes of both kinds; bubblewrap's only where it is installed."""

from __future__ import annotations

import pytest

from jax_unmask.tasks import sandbox


@pytest.fixture(scope="module", params=sandbox.KINDS)
def box(request):
    limits = sandbox.Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=200 * 2**20)
    try:
        made = sandbox.Sandbox(1, limits=limits, kind=request.param)
    except sandbox.SandboxUnavailable as error:
        pytest.skip(str(error))
    with made:
        yield made
