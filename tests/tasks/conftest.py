"""Fixtures that tests of tasks share."""

import pytest

from jax_unmask.tasks import sandbox


@pytest.fixture(scope="session")
def needs_sandbox():
    """Skips where no box can be made: in a container without the right to make namespaces, say."""
    try:
        sandbox.shared()
    except sandbox.SandboxUnavailable as error:
        pytest.skip(str(error))
