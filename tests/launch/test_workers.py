"""The commands of the launchers for their workers, executed from a wheel in an empty directory.

The cloud's command is stood in for. Each worker is a process of this machine, with a home directory
whose virtual environment holds nothing but a wheel of this package (and what it depends on), and
with a small LLaDA checkpoint under the name of the published one in the cache of the hub. The
launchers are the wheel's too.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

import devices
from jax_unmask.shipped import assets

ROOT = pathlib.Path(__file__).parents[2]
HUB_NAME = "GSAI-ML/LLaDA-8B-Instruct"
# The published recipe, but small enough for a test.
SMALL = [
    "--config.task.name=arithmetic",
    "--config.task.prompt_length=17",
    "--config.rollout.gen_length=32",
    "--config.rollout.block_length=32",
    "--config.rollout.prompts_per_step=2",
    "--config.rollout.group_size=2",
    "--config.policy.network.hidden_dim=8",
    "--config.policy.network.feedforward_dim=8",
    "--config.policy.network.time_embed_dim=8",
    "--config.optimizer.warmup_steps=0",
    "--config.model.dtype=float32",
]


ONE_STEP = [*SMALL, "--config.train.steps=1"]


@pytest.fixture(scope="session")
def launchers(wheel):
    """The directory of the launchers in a wheel."""
    (found,) = wheel.parents[1].glob("lib/*/site-packages/jax_unmask/launch")
    return found


@pytest.fixture
def worker(wheel, tmp_path):
    """The environment of worker 0 or 1 of a run, by what tells it who it is."""
    cache = tmp_path / "huggingface" / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    shutil.copytree(assets() / "arithmetic", cache / "snapshots" / "1")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("1")
    port = devices.free_port()

    def environment(index: int, **variables: str) -> dict[str, str]:
        home = tmp_path / f"home-{index}"
        if not home.exists():
            home.mkdir()
            (home / "venv").symlink_to(wheel.parents[1])
        kept = ("PATH", "JAX_COMPILATION_CACHE_DIR", "LANG")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "HOME": str(home),
            "HF_HOME": str(tmp_path / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_HEARTBEAT_TIMEOUT_SECONDS": "10",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            **variables,
        }

    return environment


def on_workers(command, environments, directory):
    """Runs a command at once as two workers, in an empty directory."""
    directory.mkdir(exist_ok=True)
    started = [
        subprocess.Popen(
            command, env=each, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for each in environments
    ]
    try:
        outputs = [process.communicate(timeout=500)[0].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs[0][-4000:]


def check_trained(workdir, steps=1):
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, steps + 1))
    assert (workdir / "policy" / "model.safetensors").exists()
    assert json.loads((workdir / "config.json").read_text())["model.path"] == HUB_NAME


def test_a_wheel_knows_its_experiments(tmp_path):
    build = ["setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, timeout=300)
    assert (tmp_path / "jax_unmask" / "launch" / "tpu.sh").is_file()
    program = (
        "from jax_unmask.commands.command_line import load_config as f; print(f('gsm8k').recipe)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "policy_grpo\n", done.stderr


@pytest.mark.slow
def test_tpu(fakes, worker, launchers, tmp_path):
    """`gcloud ... ssh --worker=all --command=C` runs C on every host; one of them dies."""
    for index in range(2):
        lines = [f"{k}={v!r}" for k, v in worker(index).items() if k != "PATH"]
        (tmp_path / f"host-{index}").write_text("".join(f"export {line}\n" for line in lines))
    (tmp_path / "empty").mkdir()
    body = f"""
case "$*" in
    *" describe "*) echo READY ;;
    *"--worker=all"*)
        command=${{!#}} command=${{command#--command=}} status=0
        cd {tmp_path}/empty
        for host in 0 1; do
            ( . {tmp_path}/host-$host; exec bash -c "$command" ) & pids[host]=$!
        done
        echo "${{pids[1]}}" >{tmp_path}/second
        for pid in "${{pids[@]}}"; do wait "$pid" || status=$?; done
        exit $status ;;
esac"""
    fakes.install(tmp_path / "bin", "gcloud", body)
    fakes.install(tmp_path / "bin", "pkill", "exit 1")
    process = fakes.start(
        *("tpu.sh", "slice", "--config=gsm8k", f"--workdir={tmp_path}/run", *SMALL),
        *("--config.train.steps=12", "--config.checkpoint.every=1"),
        path=tmp_path / "bin",
        environment={"ZONE": "here", "TYPE": "v5e", "RUNTIME": "v2", "POLL": "0", "FAILURES": "2"},
        launchers=launchers,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 1):
        time.sleep(0.05)
    os.kill(int((tmp_path / "second").read_text()), signal.SIGKILL)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, (output + errors)[-4000:]
    assert "is there (1 of 2)" in errors
    assert f"Continuing {tmp_path}/run at step" in errors
    check_trained(tmp_path / "run", steps=12)


@pytest.mark.slow
def test_gke(wheel, worker, launchers, tmp_path):
    (replicated,) = yaml.safe_load((launchers / "gke_jobset.yaml").read_text())["spec"][
        "replicatedJobs"
    ]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    command = [
        *container["command"],
        *(each.replace("/runs/", f"{tmp_path}/") for each in container["args"]),
        *ONE_STEP,
    ]
    command[0] = str(wheel)  # `python` of the image.
    on_workers(command, [worker(0), worker(1)], tmp_path / "empty")
    check_trained(tmp_path / "gsm8k")


@pytest.mark.slow
def test_skypilot(worker, launchers, tmp_path):
    task = yaml.safe_load((launchers / "skypilot.yaml").read_text())
    port = worker(0)["JAX_COORDINATOR_ADDRESS"].rpartition(":")[2]
    script = task["run"].replace("/runs/", f"{tmp_path}/").replace("8476", port)
    environments = [
        worker(rank)
        | task["envs"]
        | {
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": str(rank),
            "SETTINGS": " ".join(ONE_STEP),
        }
        for rank in range(2)
    ]
    on_workers(["bash", "-c", script], environments, tmp_path / "empty")
    check_trained(tmp_path / "gsm8k")


@pytest.mark.slow
def test_slurm(fakes, worker, launchers, tmp_path):
    """srun starts the command as two tasks, each with the variables of its step."""
    for rank in range(2):
        environment = {
            name: value
            for name, value in worker(rank).items()
            if name != "PATH" and name not in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")
        }
        environment.pop("JAX_PROCESS_ID")
        environment |= {
            "SLURM_JOB_ID": str(10_000 + os.getpid() % 4096),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
        }
        lines = [f"export {name}={value!r}\n" for name, value in environment.items()]
        (tmp_path / f"task-{rank}").write_text("".join(lines))
    (tmp_path / "empty").mkdir()
    body = f"""
shift; status=0
cd {tmp_path}/empty
for task in 0 1; do ( . {tmp_path}/task-$task; exec "$@" ) & pids[task]=$!; done
for pid in "${{pids[@]}}"; do wait "$pid" || status=$?; done
exit $status"""
    fakes.install(tmp_path / "bin", "srun", body)
    process = fakes.start(
        *("slurm.sh", "--config=gsm8k", f"--workdir={tmp_path}/run", *ONE_STEP),
        path=tmp_path / "bin",
        launchers=launchers,
        environment={"SLURM_JOB_ID": "17", "VENV": str(tmp_path / "home-0" / "venv")},
    )
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, (output + errors)[-4000:]
    check_trained(tmp_path / "run")


@pytest.mark.slow
def test_local(wheel, worker, tmp_path):
    environment = worker(0)
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        del environment[name]
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [
            *(wheel, "-m", "jax_unmask.launch.local", "-n", "2", "--cpu_devices=1", "--"),
            *(wheel, "-m", "jax_unmask.train", "--config=gsm8k"),
            *(f"--workdir={tmp_path}/run", *ONE_STEP),
        ],
        env=environment,
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    check_trained(tmp_path / "run")
