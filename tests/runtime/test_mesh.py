import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from devices import run_on_devices
from jax_unmask.runtime import accelerators
from jax_unmask.runtime import mesh as meshes

P = PartitionSpec

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jax_unmask.runtime import mesh as meshes

report = {}
mesh = meshes.make_mesh(fsdp=2, tensor=2)
report["shape"] = dict(mesh.shape)
params = {"layers": {"query": {"kernel": jnp.arange(64.0).reshape(8, 8), "bias": jnp.ones(8)}},
          "norm": jnp.ones(3)}
rules = [("query/kernel", P("fsdp", "tensor")), ("bias", P("tensor")), (".*", P())]
placed = jax.device_put(params, meshes.param_shardings(params, rules, mesh))
kernel = placed["layers"]["query"]["kernel"]
report["kernel_part"] = kernel.addressable_shards[0].data.shape
report["bias_part"] = placed["layers"]["query"]["bias"].addressable_shards[0].data.shape
report["norm_part"] = placed["norm"].addressable_shards[0].data.shape
report["same"] = bool((np.asarray(kernel) == np.asarray(params["layers"]["query"]["kernel"])).all())

batch = jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, meshes.spec("batch")))
report["batch_part"] = batch.addressable_shards[0].data.shape
apply = lambda p, x: (x @ p["layers"]["query"]["kernel"] + p["layers"]["query"]["bias"]).sum()
report["difference"] = float(abs(jax.jit(apply)(placed, batch) - apply(params, jnp.ones((8, 8)))))

for sizes in (dict(data=3), dict(data=-1, fsdp=3), dict(data=-1, fsdp=-1), dict(tensor=0)):
    try:
        meshes.make_mesh(**sizes)
    except ValueError as error:
        report[json.dumps(sizes)] = str(error)
try:
    meshes.param_shardings({"odd": jnp.ones((3, 4))}, [(".*", P(("data", "fsdp")))], mesh)
except ValueError as error:
    report["odd"] = str(error)
print(json.dumps(report))
"""


def test_on_eight_devices():
    report = json.loads(run_on_devices(8, SCRIPT))
    assert report["shape"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert report["kernel_part"] == [4, 4]
    assert report["bias_part"] == [4]
    assert report["norm_part"] == [3]
    assert report["batch_part"] == [2, 8]
    assert report["same"]
    assert report["difference"] == 0
    assert "mesh data=3, fsdp=1, tensor=1 " in report['{"data": 3}']
    assert "mesh data=-1, fsdp=3, tensor=1 " in report['{"data": -1, "fsdp": 3}']
    assert "mesh data=-1, fsdp=-1, tensor=1:" in report['{"data": -1, "fsdp": -1}']
    assert "tensor=0:" in report['{"tensor": 0}']
    assert "dimension 0 (3) " in report["odd"]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([("bias", P())], r"parameter layer/kernel of shape \(2, 4\)"),
        ([(".*", P(None, None, "fsdp"))], r"layer/kernel .*\(2, 4\).* 3 dimensions"),
        ([("kernel", P("model"))], "no axis 'model'"),
    ],
)
def test_bad_rules_name_the_parameter(rules, words):
    mesh = meshes.make_mesh()
    params = {"layer": {"kernel": jax.ShapeDtypeStruct((2, 4), jnp.float32)}}
    with pytest.raises(ValueError, match=words) as caught:
        meshes.param_shardings(params, rules, mesh)
    assert "layer/kernel" in str(caught.value)


def test_a_mesh_of_ones_own_without_the_axes():
    mesh = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])
    named = r"has axes \('x',\), and lacks data, fsdp, tensor; make it with"
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=named):
        meshes.active()


@dataclasses.dataclass(frozen=True)
class Chip:
    id: int
    process_index: int
    slice_index: int
    device_kind: str = ""
    platform: str = "gpu"


def test_slices_lie_along_data_or_fsdp():
    """Devices of a slice stay together along the other axes, and so do those of a process."""
    chips = [Chip(number, number // 2, number // 4) for number in range(8)]
    with accelerators.absent(chips):
        for shape, along in (((2, 2, 2), 0), ((4, 1, 2), 0), ((1, 4, 2), 1), ((8, 1, 1), 0)):
            made = meshes.make_mesh(*shape).devices
            found = np.vectorize(lambda chip: chip.slice_index)(made)
            first, second = np.split(found, 2, axis=along)
            assert (first == first.flat[0]).all() and (second == second.flat[0]).all(), shape
            assert first.flat[0] != second.flat[0]
            owners = [chip.process_index for chip in made.flat]
            assert len(list(itertools.groupby(owners))) == 4, shape
        with pytest.raises(ValueError, match=r"\(1, 1, 8\) .* 2 slices"):
            meshes.make_mesh(1, 1, 8)


def test_scattered_processes_are_brought_together():
    """Columns of a 4x4 square on two processes by the left and the right half of each row."""
    chips = [Chip(number, number % 4 // 2, 0) for number in range(16)]
    given = np.array(chips, object).reshape(4, 4, 1)
    found = meshes.by_process(given)
    assert [chip.process_index for chip in found.flat] == 8 * [0] + 8 * [1]
    assert set(found.flat) == set(chips)
    together = given.transpose(1, 0, 2)
    assert meshes.by_process(together) is together
