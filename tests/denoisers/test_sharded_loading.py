"""Parameters that are laid out over devices while they are read."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "llada"

# Runs on 4 virtual devices, which a process must ask for before it first uses JAX.
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


def test_on_four_devices(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(FIXTURE), str(tmp_path / "orbax")],
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["equal"] == [True, True]
    (layers, width, inner), (vocab, _) = report["shapes"]
    for up, table in report["parts"]:
        assert up == [layers, width // 2, inner // 2]
        assert table == [vocab // 2, width]
    assert report["difference"] < 1e-4
    assert report["quantised"]
