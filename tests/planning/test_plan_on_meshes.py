"""Plans for devices that are not there, in a process of their own."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.thorough

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import json, runpy, sys
from jax_unmask.commands.plan import plan, stand_in
device, _ = stand_in("v5e-4", real=False)
found = []
for name, sizes in (("quickstart", (2, 2, 1)), ("quickstart", (1, 4, 1)), ("tiny_sft", (1, 4, 1))):
    config = runpy.run_path(f"{sys.argv[1]}/configs/{name}.py")["get_config"]()
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), sizes)))
    config.mesh.rollout_fsdp = sizes[1]
    if name == "tiny_sft":
        config.model.path = "sudoku"
    planned = plan(config, compile_programs=len(found) == 0, device=device)
    found.append({
        "lasting": list(planned.lasting_bytes.values()),
        "parameters": planned.denoiser_parameters,
        "fits": planned.fits,
        "table": planned.table(),
        "collectives": [len(p.collectives or ()) for p in planned.programs],
    })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def planned():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_device_holds_its_part(planned):
    by_rows, by_weights, sft = planned
    # Norms alone are whole everywhere.
    for found, parts in ((by_rows, 2), (by_weights, 4)):
        assert found["lasting"][0] == pytest.approx(4 * found["parameters"] / parts, rel=0.02)
    # The policy is everywhere.
    assert by_rows["lasting"][1] == by_weights["lasting"][1]
    # SFT trains the denoiser: it, two moments and its average, all in four shards.
    assert sft["lasting"] == [pytest.approx(4 * sft["parameters"], rel=0.02)]


def test_compiled_programs_tell_what_devices_send(planned):
    compiled = planned[0]
    assert compiled["fits"] is True
    assert all(count > 0 for count in compiled["collectives"])
    assert "devices   4 x v5e: mesh data 2 x fsdp 2 x tensor 1" in compiled["table"]
    assert "rollout, per forward" in compiled["table"]
    assert re.search(r"useful forwards, an estimate +[0-9]+%   [0-9]+% with", compiled["table"])
    assert "rollout, 8 forwards per row" in compiled["table"]
    assert planned[1]["fits"] is True  # By estimate: it was not compiled.


def test_the_mesh_is_chosen_for_the_forwards_that_are_asked_for():
    program = """
import dataclasses, json, logging, runpy, sys
from jax_unmask.commands.plan import plan, stand_in, verdict
logging.basicConfig(level="INFO", stream=sys.stdout, force=True)
device, _ = stand_in("v6e-16", real=False)
config = runpy.run_path(f"{sys.argv[1]}/configs/gsm8k.py")["get_config"]()
config.rollout.cache = "dual"
found = []
for nfe in (8, 1000):
    made = plan(config, device=device, nfe=nfe)
    programs = [dataclasses.replace(each, temporary_bytes=0) for each in made.programs]
    compiled = dataclasses.replace(made, programs=tuple(programs))
    arguments = ["--config=gsm8k", f"--nfe={nfe}"]
    found.append([made.layouts, list(made.rollout_mesh.values()), verdict(compiled, arguments)])
print(json.dumps(found))
"""
    command = [sys.executable, "-c", program, str(ROOT)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout.splitlines()[-1])
    assert few[1] == few[0][0][0] == [16, 1, 1]
    assert many[1] == many[0][0][0] == [8, 1, 2]
    said = re.findall(r"about ([0-9.]+) s a sequence", done.stdout)
    assert said == [f"{layouts[0][1]:.2g}" for layouts, _, _ in (few, many)]
    # Training assumes another number: it is told the mesh.
    assert "--config.mesh.rollout_fsdp=1 --config.mesh.rollout_tensor=2" in " ".join(many[2])
