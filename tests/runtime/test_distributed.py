"""Joining processes: where the coordinator listens, and who is waited for."""

import re
import socket

import jax
import pytest

from jax_unmask.runtime import distributed


@pytest.fixture
def joined(monkeypatch):
    """Arguments of `jax.distributed.initialize`."""
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *given, **settings: calls.append((given, settings))
    )
    return calls


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_the_coordinator_listens_on_the_loopback_only_when_told_so(joined, host):
    distributed._join(f"{host}:0", 2, 0, {})
    distributed._join("node7:0", 2, 0, {})
    bound = [settings.get("coordinator_bind_address") for _, settings in joined]
    assert bound == [f"{host}:0", None]


def test_a_port_in_use(joined, listening):
    with pytest.raises(OSError, match=rf"\b{listening} of --coordinator="):
        distributed._join(f"127.0.0.1:{listening}", 2, 0, {})
    assert not joined


def test_nobody_at_the_coordinators_address(joined, monkeypatch, caplog):
    monkeypatch.setattr(distributed, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(distributed, "_QUIET_SECONDS", 0.1)
    with pytest.raises(OSError, match=r"process 1: .* 127\.0\.0\.1:1"):
        distributed._join("127.0.0.1:1", 2, 1, {})
    assert re.search(r"process 1: .* process 0; .* 127\.0\.0\.1:1", caplog.text)
    assert not joined


def test_somebody_there(joined, listening):
    distributed._join(f"127.0.0.1:{listening}", 2, 1, {"heartbeat_timeout_seconds": 7})
    ((given, settings),) = joined
    assert given == (f"127.0.0.1:{listening}", 2, 1)
    assert settings["heartbeat_timeout_seconds"] == 7


def test_a_run_that_cannot_be_joined(listening, monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(OSError, match=r"process 1 of 2 cannot join .*: DEADLINE_EXCEEDED: Barrier"):
        distributed._join(f"127.0.0.1:{listening}", 2, 1, {})
