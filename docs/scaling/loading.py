"""Peak host memory of loading a sharded checkpoint: `python docs/scaling/loading.py --gigabytes=2`.

Makes a checkpoint in LLaDA's layout with random weights, in shards, and loads it onto 8 virtual CPU
devices in a process of its own. There the devices' memory is the host's too, so what is reported is
the peak beside the parameters themselves: what a host needs that hands everything on to its
devices. Pages of the mapped files, which the system drops when it needs them, do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

LOAD = """
import json, pathlib, sys, threading
import jax
from jax_unmask import denoisers
from jax_unmask.denoisers.sharding import RULES
from jax_unmask.runtime.mesh import param_shardings
from jax_unmask.runtime.placement import Placement

def resident():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

done, peaks = threading.Event(), []

def watch():
    while not done.wait(0.002):
        peaks.append(resident())

directory, sizes = sys.argv[1], json.loads(sys.argv[2])
mesh = Placement.of(*sizes).mesh
shardings = None
if mesh is not None:
    shardings = lambda params: param_shardings(params, RULES, mesh)
jax.block_until_ready(jax.numpy.zeros(1))
before = resident()
watcher = threading.Thread(target=watch)
watcher.start()
_, params = denoisers.from_pretrained(directory, shardings=shardings)
done.set()
watcher.join()
held = sum(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards)
largest = max(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards)
print(json.dumps({"held": held, "largest_part": largest, "beside": max(peaks) - before - held}))
"""


def make(directory: pathlib.Path, gigabytes: float) -> int:
    """Writes a checkpoint of about this size in bfloat16; returns its bytes."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jax_unmask import denoisers

    shape = {"hidden_size": 2048, "intermediate_size": 6144, "vocab_size": 32768}
    per_layer = 2 * (4 * shape["hidden_size"] ** 2 + 3 * 2048 * 6144)
    layers = max(1, round((gigabytes * 1e9 - 4 * 2048 * 32768) / per_layer))
    config = denoisers.DenoiserConfig(
        family="llada",
        num_layers=layers,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        rope_theta=1e4,
        norm_eps=1e-5,
        max_length=4096,
        tie_embeddings=False,
        mask_token_id=32767,
        eos_token_id=1,
        pad_token_id=1,
        param_dtype="bfloat16",
        **shape,
    )
    noise = np.random.default_rng(0).normal(size=1 << 20).astype(jnp.bfloat16)
    params = jax.tree.map(
        lambda leaf: np.resize(noise, leaf.shape), denoisers.abstract_params(config)
    )
    denoisers.save_pretrained(
        directory, denoisers.Denoiser(config), params, max_shard_bytes=500_000_000
    )
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def main() -> None:
    """Runs the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name) / "model"
        command = "import sys; sys.path.insert(0, sys.argv[3]); import loading, pathlib; "
        command += "print(loading.make(pathlib.Path(sys.argv[1]), float(sys.argv[2])))"
        here = str(pathlib.Path(__file__).parent)
        arguments = [str(directory), str(args.gigabytes), here]
        size = int(run([sys.executable, "-c", command, *arguments], 1).splitlines()[-1])
        files = len(list(directory.glob("*.safetensors")))
        print(f"{size / 1e9:.2f} GB in {files} files", flush=True)
        for sizes in ([1, 1, 1], [1, 8, 1], [2, 2, 2]):
            devices = sizes[0] * sizes[1] * sizes[2]
            output = run([sys.executable, "-c", LOAD, str(directory), json.dumps(sizes)], devices)
            found = json.loads(output.splitlines()[-1])
            text = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in found.items())
            print(f"data, fsdp, tensor = {sizes}: {text}", flush=True)


def run(command: list[str], devices: int) -> str:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


if __name__ == "__main__":
    main()
