"""`launch/tpu.sh` against a gcloud that answers as the slice's states would have it."""

import pytest

# States come from a file, one per question, the last for ever; "ssh" takes its statuses likewise.
GCLOUD = """
next() {{ # FILE
    head -n 1 "$1"
    [[ $(wc -l <"$1") -le 1 ]] || sed -i 1d "$1"
}}
case "$*" in
    *" describe "*) answer=$(next {states}); [[ $answer != ABSENT ]] || exit 1; echo "$answer" ;;
    *"jax_unmask.train --config"*) exit "$(next {statuses})" ;;
esac
"""


@pytest.fixture
def run(fakes, tmp_path):
    def run(states, statuses, **environment):
        for name, lines in (("states", states), ("statuses", statuses)):
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        body = GCLOUD.format(states=tmp_path / "states", statuses=tmp_path / "statuses")
        fakes.install(tmp_path / "bin", "gcloud", body)
        settings = {"ZONE": "here", "TYPE": "v5litepod-16", "RUNTIME": "v2", "POLL": "0"}
        process = fakes.start(
            "tpu.sh",
            "slice",
            "--config=a b",
            "--workdir=/mnt/runs",
            path=tmp_path / "bin",
            environment=settings | environment,
        )
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors, fakes.calls(tmp_path / "bin")

    return run


def verbs(calls: list[str]) -> list[str]:
    """Commands to the slice, without the questions about its state."""
    words = [call.split()[4] for call in calls]
    return [word for word in words if word != "describe"]


def test_creates_trains_and_deletes(run):
    status, _, calls = run(["ABSENT", "CREATING", "READY"], [0])
    assert status == 0
    # The first connection sets up, the second trains.
    assert verbs(calls) == ["create", "ssh", "ssh", "delete"]
    create = next(call for call in calls if " create " in call)
    assert create == (
        "gcloud compute tpus tpu-vm create slice --zone=here --accelerator-type=v5litepod-16 "
        "--version=v2"
    )
    train = [call for call in calls if " ssh " in call][-1]
    assert "--worker=all" in train
    assert train.endswith(r"-m jax_unmask.train --config=a\ b --workdir=/mnt/runs")


def test_a_preempted_slice_is_made_again(run):
    states = ["READY", "PREEMPTED", "PREEMPTED", "ABSENT", "CREATING", "READY"]
    status, _, calls = run(states, [255, 0])
    assert status == 0
    assert verbs(calls) == ["ssh", "ssh", "delete", "create", "ssh", "ssh", "delete"]


def test_queued_resources(run):
    states = ["ABSENT", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "SUSPENDED", "ABSENT"]
    states += ["PROVISIONING", "ACTIVE"]
    status, _, calls = run(states, [255, 0], QUEUED="1", SPOT="1")
    assert status == 0
    assert verbs(calls) == ["create", "ssh", "ssh", "delete", "create", "ssh", "ssh", "delete"]
    create = next(call for call in calls if " create " in call)
    assert "queued-resources create slice --node-id=slice" in create
    assert create.endswith("--runtime-version=v2 --spot")
    assert all("--force" in call for call in calls if " delete " in call)


def test_gives_up_when_the_program_itself_fails(run):
    status, errors, calls = run(["READY"], [1], FAILURES="2")
    assert status == 1
    assert "giving up; " in errors
    assert verbs(calls) == ["ssh"] * 4


def test_explains_itself(fakes, tmp_path):
    process = fakes.start("tpu.sh", path=tmp_path, environment={})
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "QUEUED=1" in errors
    process = fakes.start("tpu.sh", "slice", "--config=x", path=tmp_path, environment={})
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "set ZONE" in errors
