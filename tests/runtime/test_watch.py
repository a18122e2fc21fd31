import logging
import re
import time
from unittest import mock

import jax
import pytest

from jax_unmask.runtime import accelerators, watch
from jax_unmask.runtime.watch import Heartbeat, Profile


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(workdir, process, count=2, **options):
    """The heartbeat of one of several processes, with a beat every 0.2 s."""
    with (
        mock.patch.object(jax, "process_index", lambda: process),
        mock.patch.object(jax, "process_count", lambda: count),
    ):
        return Heartbeat(workdir, 0.8, **options)


def test_names_the_process_that_the_others_wait_for(tmp_path, caplog):
    with start(tmp_path, 0) as first, start(tmp_path, 1) as second:
        for beat in (first, second):
            beat.begin(3)
            beat.enter("rollout")
        first.enter("reward")
        first.enter("update")
        second.enter("reward")
        wait_for(lambda: "stood still" in caplog.text)
    (record,) = caplog.records
    assert "process 1 (host" in record.message
    assert record.message.count("in phase 'reward' of step 3") == 1
    for process in range(2):
        stacks = (tmp_path / "heartbeats" / f"{process}.stacks.txt").read_text()
        assert "test_watch.py" in stacks


def test_names_a_process_that_gives_no_sign_of_life(tmp_path, caplog):
    # Of processes 0 and 2 one never came, the other went.
    start(tmp_path, 2, count=3).close()
    with start(tmp_path, 1, count=3) as alive:
        alive.begin(5)
        wait_for(lambda: "stood still" in caplog.text)
    assert "from process 0 (which never gave any), process 2 (" in caplog.text


def test_each_stall_is_reported_once_and_the_next_again(tmp_path, caplog):
    with start(tmp_path, 0, count=1) as beat:
        for step in (1, 2):
            beat.begin(step)
            wait_for(lambda step=step: len(caplog.records) == step)
            time.sleep(0.3)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert re.search(r"in step 2\. .* phase 'begin'", caplog.records[1].message)


def test_ends_the_process_where_that_is_asked_for(tmp_path, monkeypatch):
    statuses: list[int] = []
    monkeypatch.setattr("os._exit", statuses.append)
    with start(tmp_path, 0, count=1, ends=True):
        wait_for(lambda: statuses)
    assert set(statuses) == {124}


def test_profile_leaves_out_the_steps_that_compile(tmp_path, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda path: calls.append(path))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    with Profile(tmp_path, 2) as profile:
        for step in range(7, 13):
            with profile.step(step):
                calls.append(str(step))
    assert calls == ["7", "8", str(tmp_path / "profile"), "9", "10", "stop", "11", "12"]


def test_profile_of_a_run_that_ends_early_is_written(tmp_path):
    with Profile(tmp_path, 5) as profile:
        for step in range(3):
            with profile.step(step):
                jax.block_until_ready(jax.numpy.ones(3) + 1)
    assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))


def test_utilisation_is_known_where_the_device_is(monkeypatch):
    assert watch.utilisation(1e12, 2.0) == {"model_flops_per_second": 5e11}
    assert watch.utilisation(0.0, 2.0) == {}
    (v5e,) = [each for each in accelerators.ACCELERATORS if each.name == "v5e"]
    monkeypatch.setattr(accelerators, "here", lambda: v5e)
    found = watch.utilisation(v5e.flops, 4.0)
    assert found["mfu"] == pytest.approx(0.25 / jax.device_count())


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("h100x8", "h100", 8),
        ("v5e-16", "v5e", 16),
        ("v5litepod-256", "v5e", 256),
        ("v5p-64", "v5p", 32),
        ("V6E-256", "v6e", 256),
        ("a100-80gx4", "a100-80g", 4),
        ("v4x4", "v4", 4),
    ],
)
def test_devices_by_name(text, name, count):
    found, number = accelerators.parse(text)
    assert (found.name, number) == (name, count)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5e", "--devices='v5e': "),
        ("tpu-8", "known are v4, v5e"),
        ("v5p-5", "--devices='v5p-5': v5p-N .* 2 "),
        ("v6e-2", "--devices='v6e-2': .* 1, 4, 8, 16, 32, 64, 128, 256 "),
        ("h100x0", "--devices='h100x0': "),
        ("h100x99999999", "at most 10,000"),
        ("h100x" + "9" * 5000, "at most 10,000"),
    ],
)
def test_devices_that_there_are_not(text, words):
    with pytest.raises(ValueError, match=words):
        accelerators.parse(text)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
    ],
)
def test_devices_by_what_jax_calls_them(kind, name, monkeypatch):
    class Device:
        device_kind = kind

    monkeypatch.setattr("jax.devices", lambda: [Device()])
    assert accelerators.here().name == name
