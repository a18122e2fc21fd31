"""Boxes of both kinds; bubblewrap's only where it is installed."""

import pytest

from jax_unmask.tasks import sandbox

LIMITS = sandbox.Limits(cpu_seconds=1, wall_seconds=10.0, memory_bytes=200 * 2**20)


@pytest.fixture(scope="module", params=sandbox.KINDS)
def make_box(request):
    """Makes a sandbox with one box of a kind."""

    def make():
        return sandbox.Sandbox(1, limits=LIMITS, kind=request.param)

    try:
        make().close()
    except sandbox.SandboxUnavailable as error:
        pytest.skip(str(error))
    return make


@pytest.fixture(scope="module")
def box(make_box):
    with make_box() as made:
        yield made
