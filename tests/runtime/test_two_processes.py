"""Checkpoints of a run on two processes, each with two devices."""

import os
import subprocess
import sys

import pytest

import devices

SCRIPT = """
import json
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jax_unmask.runtime.checkpoints import Checkpoints
from jax_unmask.runtime.mesh import make_mesh

process, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
split = NamedSharding(make_mesh(fsdp=2), P("fsdp"))

def make(step):
    params = {"w": jax.make_array_from_callback((8,), split, lambda i: np.arange(8.0)[i] * step)}
    whole = NamedSharding(split.mesh, P())
    state = {"step": jax.make_array_from_callback((), whole, lambda i: np.int32(step))}
    return params, state

with Checkpoints(workdir) as checkpoints:
    for step in (1, 2):
        params, state = make(step)
        checkpoints.save(step, params=params, state=state, data={"next": step})
if process == 0:
    # Each process sums what it wrote; process 0 the rest as well.
    names = json.loads((checkpoints.directory / "2" / "checksums.1.json").read_text())
    assert names and all("/ocdbt.process_1/" in name for name in names), names
    names = json.loads((checkpoints.directory / "2" / "checksums.json").read_text())
    assert "checksums.1.json" in names
    assert not any("ocdbt.process_1" in name for name in names)
    for path in checkpoints.directory.glob("2/params/ocdbt.process_1/d/*"):
        path.write_bytes(bytes(path.stat().st_size))
jax.experimental.multihost_utils.sync_global_devices("damaged")
with Checkpoints(workdir) as checkpoints:
    restored = checkpoints.restore(*make(0))
    assert restored.step == 1, restored.step
    assert restored.data == {"next": 1}
    for shard in restored.params["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(8.0)[shard.index])
    assert checkpoints.steps() == [1]
print("done", process)
"""


@pytest.mark.slow
def test_both_processes_go_back_to_the_same_checkpoint(tmp_path):
    port = devices.free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(process), str(port), str(tmp_path)],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert (tmp_path / "corrupt_checkpoints" / "2").is_dir()
