"""Commands end with what was found and with a command that runs as it stands."""

import shlex
from types import SimpleNamespace

import pytest
from absl import flags

from jax_unmask.commands import bench, command_line, convert, generate, harness, hub, plan, train
from jax_unmask.runtime import terminal
from jax_unmask.runtime.accelerators import parse
from jax_unmask.shipped import assets

POLICY = assets() / "policies" / "sudoku-seed0"


def runs(line: str) -> bool:
    """Whether the command of a line takes its arguments."""
    words = shlex.split(line.removeprefix("Next: "))
    assert words[0] == "jax-unmask"
    parsers = {"generate": generate, "bench": bench}
    if words[1] in parsers:
        args = parsers[words[1]].parser().parse_args(words[2:])
        if words[1] == "generate":
            generate.fill_in(args)
            asked = generate.problem(args)
            if args.task:  # Other prompts are for models that know more words than these.
                generate.check(args, asked)
        return True
    values = flags.FlagValues()
    {"train": train, "plan": plan}[words[1]].define_flags(values)
    return bool(values([words[1], *words[2:]]))


def row(**values):
    known = {"cache": "none", "batch_size": 1, "sequences_per_second": 2.0, "tokens_per_second": 9}
    return known | values


def test_bench_names_the_fastest():
    arguments = ["--model=sudoku", "--gen_length=16", "--block_length=16", "--json=speed.json"]
    args = bench.parser().parse_args(arguments)
    record = {"rollouts": [row(), row(batch_size=8, sequences_per_second=6.0)]}
    found = bench.verdict(record, args, arguments)
    assert found[0].startswith("Fastest: batch 8, cache none: 6 sequences/s")
    assert found[1] == "3.00 x batch 1, cache none"
    assert found[2] == "Record: speed.json"
    assert runs(found[3])


def test_bench_of_a_training_step_begins_it():
    arguments = ["--breakdown", "--config=configs/quickstart.py", "--config.seed=1"]
    args, _ = bench.parser().parse_known_args(arguments)
    measured = {"seconds_per_step": 0.5, "shares": {"rollout": 0.8, "update": 0.2}}
    line, last = bench.verdict({"breakdown": measured}, args, arguments)
    assert line == "0.5 s per step: rollout 80%, update 20%"
    assert last == "Next: jax-unmask train --config=configs/quickstart.py --config.seed=1"


def test_plan_measures_what_was_estimated_and_trains_what_was_measured():
    device, count = parse("v5e-4")
    given = ["--config=configs/quickstart.py", "--devices=v5e-4"]
    estimate = SimpleNamespace(total=2e9)
    planned = SimpleNamespace(
        device=device, devices=count, needed_bytes=None, estimate=estimate, fits=True, refusal=None
    )
    line, last = plan.verdict(planned, given)
    assert line == "It fits: 2.00 GB on each of 4 x v5e, by estimate."
    assert last.endswith("plan --config=configs/quickstart.py --devices=v5e-4 --compile")
    planned.needed_bytes = 3_000_000_000
    assert (
        plan.verdict(planned, given)[1] == "Next: jax-unmask train --config=configs/quickstart.py"
    )


@pytest.mark.parametrize("source", ["sudoku", "elsewhere"])
def test_convert_writes_with_the_model(source):
    directory = assets() / "sudoku"
    assert runs(
        shlex.join(["jax-unmask", *convert.next_command(directory, str(directory), source)])
    )


def test_harness_has_a_line_for_each_task():
    arguments = ["--model=sudoku", "--tasks=a", "--gen_length=16", "--block_length=16"]
    args = harness.parser().parse_args(arguments)
    metrics = {"alias": "a", "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1}
    results = {"results": dict.fromkeys("abcdef", metrics), "nfe_mean": 7.0}
    found = harness.verdict(results, args)
    assert len(found) == 5
    assert found[0] == "threshold:threshold=0.9: 7.00 forwards per text"
    assert found[1] == "a: exact_match 0.500"
    assert found[3] == "... and 4 more."
    assert runs(found[4])


def test_hub_uses_what_it_moved():
    then = ["generate", "--policy=learned:me/fast", "--problem=3"]
    assert hub.next_command(POLICY, "me/fast") == then
    assert runs(shlex.join(["jax-unmask", *hub.next_command(POLICY, POLICY.name)]))


def test_hub_uses_a_denoiser(tmp_path):
    assert hub.next_command(assets() / "sudoku", "me/s")[:2] == ["generate", "--model=me/s"]
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(assets() / "sudoku" / name)
    assert hub.next_command(tmp_path, "me/s")[:2] == ["bench", "--model=me/s"]  # No tokenizer.


def test_training_says_how_metrics_changed(tmp_path):
    config = command_line.load_config("quickstart")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "reward": 0.25, "nfe": 9.0}\n{"step": 75, "reward": 0.5, "nfe": 3.0}\n'
    )
    (tmp_path / "policy").symlink_to(POLICY)
    found = train._verdict(config, tmp_path)
    assert found[:2] == ["reward 0.25 at step 1, 0.5 at step 75", "nfe 9 at step 1, 3 at step 75"]
    assert runs(found[-1]) and found[-1].endswith("--task=sudoku --problem=3")


def test_there_are_five_lines_at_most():
    assert terminal.verdict("abcdef", places="P", then=["x"])[2:] == [
        "... and 4 more.",
        "P",
        "Next: jax-unmask x",
    ]
