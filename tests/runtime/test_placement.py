"""Batches between hosts and devices, in one process and in two."""

import numpy as np
import pytest

import devices
from jax_unmask.runtime.placement import Placement

# Two processes of two devices each; the tensor axis is within a process, or across both.
PROGRAM = """
import json, sys
import jax, numpy as np
from jax_unmask.runtime import distributed
from jax_unmask.runtime.placement import Placement

distributed.initialize()
report = {}
for sizes in ((2, 2, 1), (1, 2, 2), (1, 1, 4)):
    placement = Placement.of(*sizes)
    local = np.arange(8).reshape(placement.feeds, -1)[placement.feed]
    with placement.active():
        batch = placement.rows({"x": local, "key": None})["x"]
        doubled = jax.jit(lambda x: 2 * x)(batch)
        whole = placement.everywhere({"k": jax.random.key(3), "v": np.arange(3)})
    report[str(sizes)] = {
        "parts": placement.shards, "feed": placement.feed, "feeds": placement.feeds,
        "shape": batch.shape,
        "own": placement.fetch(doubled).tolist(),
        "all": placement.gather(placement.fetch(doubled)).tolist(),
        "gathered": placement.gather(local + 100 * jax.process_index()).tolist(),
        "everywhere": [int(jax.random.bits(whole["k"])), whole["v"].is_fully_replicated],
    }
print("result: " + json.dumps(report), flush=True)
"""


def test_two_processes_feed_one_batch():
    reports = devices.run_in_processes(2, 2, "-c", PROGRAM)
    for index, report in enumerate(reports):
        for name, feeds in (("(2, 2, 1)", 2), ("(1, 2, 2)", 2), ("(1, 1, 4)", 1)):
            found = report[name]
            feed = index if feeds == 2 else 0
            rows = np.arange(8).reshape(feeds, -1)
            assert (found["feed"], found["feeds"]) == (feed, feeds)
            assert found["shape"] == [8]
            assert found["own"] == (2 * rows[feed]).tolist()
            assert found["all"] == (2 * np.arange(8)).tolist()
            # What processes of one feed found differently is what the first of them found.
            assert found["gathered"] == [
                int(row) + 100 * (first if feeds == 2 else 0)
                for first, own in enumerate(rows)
                for row in own
            ]
            assert found["everywhere"] == reports[0][name]["everywhere"]
            assert found["everywhere"][1]
    assert [reports[0][name]["parts"] for name in reports[0]] == [4, 2, 1]


def test_one_device_is_no_mesh():
    placement = Placement.of()
    assert placement.mesh is None
    assert (placement.shards, placement.feed, placement.feeds) == (1, 0, 1)
    batch = placement.rows({"x": np.arange(3)})
    np.testing.assert_array_equal(placement.fetch(batch)["x"], np.arange(3))
    assert placement.make(lambda x: x, batch, rules=()) is batch


@pytest.mark.parametrize("sizes", [(3, 1, 1), (1, 1, 2)])
def test_sizes_must_fit_the_devices(sizes):
    with pytest.raises(ValueError, match=r"mesh .* 1 devices"):
        Placement.of(*sizes)
