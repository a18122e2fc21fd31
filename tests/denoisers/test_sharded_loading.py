"""Parameters that are laid out over devices while they are read."""

import json
import pathlib

import pytest

from devices import run_on_devices

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "llada"

SCRIPT = """
import json, sys
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from jax_unmask import denoisers
from jax_unmask.runtime import mesh as meshes

source, orbax = sys.argv[1:]
mesh = meshes.make_mesh(data=1, fsdp=2, tensor=2)
rules = [("(query|key|value|gate|up)/kernel", P(None, "fsdp", "tensor")),
         ("embedding|head", P("fsdp")), (".*", P())]
shardings = lambda params: meshes.param_shardings(params, rules, mesh)
denoiser, whole = denoisers.from_pretrained(source)
denoisers.save_orbax(orbax, denoiser, whole)
report = {"equal": [], "parts": []}
for path in (source, orbax):
    _, params = denoisers.from_pretrained(path, shardings=shardings)
    report["equal"].append(jax.tree.all(jax.tree.map(
        lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), params, whole)))
    up, table = params["layers"]["up"]["kernel"], params["embedding"]
    report["parts"].append([x.addressable_shards[0].data.shape for x in (up, table)])
tokens = np.arange(12, dtype=np.int32).reshape(1, 12)
apply = jax.jit(denoiser.apply)
expected = apply({"params": whole}, tokens)
report["difference"] = float(abs(np.asarray(apply({"params": params}, tokens)) - expected).max())
_, small = denoisers.from_pretrained(source, shardings=shardings, quantization="int8")
_, alone = denoisers.from_pretrained(source, quantization="int8")
report["quantised"] = jax.tree.all(jax.tree.map(
    lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), small, alone))
report["shapes"] = [whole["layers"]["up"]["kernel"].shape, whole["embedding"].shape]
print(json.dumps(report))
"""


@pytest.mark.thorough
def test_on_four_devices(tmp_path):
    report = json.loads(run_on_devices(4, SCRIPT, FIXTURE, tmp_path / "orbax"))
    assert report["equal"] == [True, True]
    (layers, width, inner), (vocab, _) = report["shapes"]
    for up, table in report["parts"]:
        assert up == [layers, width // 2, inner // 2]
        assert table == [vocab // 2, width]
    assert report["difference"] < 1e-4
    assert report["quantised"]
