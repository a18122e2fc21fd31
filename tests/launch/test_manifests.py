"""Manifests against the shapes that the programs which read them publish."""

import dataclasses
import os
import pathlib
import re
import subprocess
from typing import Any

import pytest
import yaml
from absl import flags

from jax_unmask import recipes
from jax_unmask.commands import command_line, train
from jax_unmask.runtime.config import flatten

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"


@dataclasses.dataclass(frozen=True)
class Map:
    """Any names, all with values of one shape."""

    values: Any


@dataclasses.dataclass(frozen=True)
class Text:
    """A text that matches a regular expression as a whole."""

    pattern: str


NAME = Text(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
# jobset.x-k8s.io/v1alpha2, batch/v1 Job, core/v1 Pod: the fields that TPU jobs use. `?`: optional.
POD = {
    "restartPolicy": {"Never", "OnFailure"},
    "terminationGracePeriodSeconds?": int,
    "nodeSelector?": Map(str),
    "containers": [
        {
            "name": NAME,
            "image": Text(r"[\w.-]+(/[\w.-]+)*(:[\w.-]+)?"),
            "command?": [str],
            "args?": [str],
            "env?": [{"name": Text(r"[A-Z_]+"), "value": str}],
            "resources": {"limits": Map(int), "requests?": Map(int)},
            "volumeMounts?": [{"name": NAME, "mountPath": Text("/.+")}],
        }
    ],
    "volumes?": [{"name": NAME, "persistentVolumeClaim": {"claimName": NAME}}],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": {"Indexed", "NonIndexed"},
    "backoffLimit": int,
    "podFailurePolicy?": {
        "rules": [
            {
                "action": {"FailJob", "Ignore", "Count", "FailIndex"},
                "onPodConditions?": [{"type": str, "status": {"True", "False", "Unknown"}}],
                "onExitCodes?": {
                    "containerName?": NAME,
                    "operator": {"In", "NotIn"},
                    "values": [int],
                },
            }
        ]
    },
    "template": {"spec": POD},
}
JOBSET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {"name": NAME, "annotations?": Map(str), "labels?": Map(str)},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules?": [
                {
                    "name": Text(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
                    "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
                    "onJobFailureReasons?": [
                        {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}
                    ],
                }
            ],
        },
        "replicatedJobs": [{"name": NAME, "replicas": int, "template": {"spec": JOB}}],
    },
}
# https://docs.skypilot.co/en/latest/reference/yaml-spec.html
SKYPILOT = {
    "name": NAME,
    "num_nodes": int,
    "resources": {
        "accelerators": Text(r"[A-Z][\w-]*:\d+"),
        "use_spot?": bool,
        "disk_size?": int,
        "job_recovery?": {"max_restarts_on_errors?": int},
    },
    "workdir": str,
    "file_mounts?": Map({"name": NAME, "mode": {"MOUNT", "COPY", "MOUNT_CACHED"}, "store?": str}),
    "envs?": Map(str),
    "setup": str,
    "run": str,
}


def problems(value: Any, shape: Any, where: str = "") -> list[str]:
    """The places in which a value has another shape than it should."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where}: must be a mapping"]
        known = {name.rstrip("?"): inner for name, inner in shape.items()}
        found = [f"{where}.{name}: unknown" for name in value.keys() - known.keys()]
        required = {name for name in shape if not name.endswith("?")}
        found += [f"{where}.{name}: missing" for name in required - value.keys()]
        pairs = [(name, value[name], known[name]) for name in value.keys() & known.keys()]
        return found + [p for name, v, s in pairs for p in problems(v, s, f"{where}.{name}")]
    if isinstance(shape, Map):
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            return [f"{where}: must be a mapping with texts for names"]
        return [p for n, v in value.items() for p in problems(v, shape.values, f"{where}.{n}")]
    if isinstance(shape, list):
        if not isinstance(value, list) or not value:
            return [f"{where}: must be a list, not empty"]
        return [p for n, v in enumerate(value) for p in problems(v, shape[0], f"{where}[{n}]")]
    if isinstance(shape, set):
        return [] if value in shape else [f"{where}: {value!r} is none of {sorted(shape)}"]
    if isinstance(shape, Text):
        fits = isinstance(value, str) and re.fullmatch(shape.pattern, value)
        return [] if fits else [f"{where}: {value!r} is not of the form {shape.pattern}"]
    # YAML has types of its own: what looks like a number, or yes, is none of str.
    return [] if type(value) is shape else [f"{where}: {value!r} is no {shape.__name__}"]


def load(name: str) -> Any:
    return yaml.safe_load((LAUNCH / name).read_text())


@pytest.fixture(scope="module")
def jobset():
    return load("gke_jobset.yaml")


def test_jobset_has_the_shape_of_its_api(jobset):
    assert problems(jobset, JOBSET) == []


def test_jobset_makes_sense(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    # One pod per host; the slice has as many chips as its topology says.
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(topology[0]) * int(topology[1])
    assert job["parallelism"] == job["completions"]
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    # A pod that fails fails the job, and that restarts all of them.
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    # The status of a preempted run is that which does not count as a failure.
    (codes,) = [
        rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]
    assert codes["containerName"] == container["name"]
    assert [f"--preempted_status={code}" for code in codes["values"]] == container["args"][-1:]
    # Volumes and their mounts belong together, and the workdir lies on one.
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    (workdir,) = [a.partition("=")[2] for a in container["args"] if a.startswith("--workdir=")]
    assert workdir.startswith(f"{mounts['runs']}/")


def test_arguments_of_the_jobset_are_those_of_training(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "jax_unmask.train"]
    values = flags.FlagValues()
    train.define_flags(values)
    arguments = dict(argument[2:].split("=", 1) for argument in container["args"])
    config = command_line.load_config(arguments["config"])
    for name, text in arguments.items():
        if name.startswith("config."):
            before = flatten(config)[name.removeprefix("config.")]
            value = text if before is None else type(before)(text)
            config.update_from_flattened_dict({name.removeprefix("config."): value})
        else:
            assert name in values
    recipes.read(config)


def test_skypilot_has_the_shape_of_its_specification():
    assert problems(load("skypilot.yaml"), SKYPILOT) == []


def test_skypilot_tells_jax_where_the_others_are(fakes, tmp_path):
    task = load("skypilot.yaml")
    report = 'env | grep ^JAX_ | sort; printf "%s\\n" "$@"'
    (tmp_path / "venv").mkdir()
    fakes.install(tmp_path / "venv" / "bin", "python", report)
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": "1",
            **task["envs"],
            "SETTINGS": "--config.seed=1 --alsologtostderr",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "JAX_COORDINATOR_ADDRESS=10.0.0.7:8476",
        "JAX_NUM_PROCESSES=2",
        "JAX_PROCESS_ID=1",
        *("-m", "jax_unmask.train", "--config=gsm8k", "--workdir=/runs/gsm8k"),
        *("--config.seed=1", "--alsologtostderr"),
    ]
