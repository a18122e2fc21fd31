"""Meshes of training and rollouts whose devices, and so the processes' rows, differ in order."""

import json

import pytest

import devices
import mesh_runs
import tiny


@pytest.mark.default_cases("one")
@pytest.mark.parametrize(
    ("processes", "order"), [(1, [3, 1, 0, 2]), (2, [2, 3, 0, 1])], ids=["one", "two"]
)
def test_rows_belong_to_their_prompts_in_any_order_of_the_devices(tmp_path, processes, order):
    tiny.save_model(tmp_path, ["1", "2", "3", "4", ".", "=", "+"])
    changes = {"model.path": str(tmp_path), "value.enabled": False, "mesh.rollout_tensor": 2}
    run = {"recipe": "tracerl", "mesh": [2, 2, 1], "changes": changes, "steps": 1}
    runs = json.dumps({"plain": run, "permuted": run | {"order": order}})
    program = mesh_runs.__file__
    found, *others = devices.run_in_processes(4 // processes, processes, program, runs)
    assert all(each == found for each in others)
    (plain,), (permuted,) = (found[name]["metrics"] for name in ("plain", "permuted"))
    assert permuted == pytest.approx(plain, abs=1e-5, rel=1e-4)
    assert plain["grad_norm"] > 0
