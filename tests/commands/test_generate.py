"""`python -m jax_unmask.generate`, mostly called in this process: each start costs seconds."""

import json
import types

import jax
import pytest

import hub_cache
from jax_unmask.commands import generate
from jax_unmask.policies import LearnedPolicy, NetworkConfig, save_policy
from jax_unmask.policies.checkpoint import MadeFor

PUZZLE = "1234341221434321="


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return str(tiny_model_dir)


def run(capsys, *arguments):
    generate.main(arguments)
    return capsys.readouterr()


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        generate.main(arguments)
    return str(stopped.value) + capsys.readouterr().err


def shape(length=8, block=4):
    return f"--gen_length={length}", f"--block_length={block}"


def test_prints_the_text(model, capsys):
    arguments = (f"--model={model}", f"--prompt={PUZZLE}", "--policy=top_confidence")
    shown = run(capsys, *arguments, *shape())
    assert set(shown.out.strip()) <= set("1234.=")
    assert "NFE 8 for 8 positions" in shown.err


def test_json_describes_every_position(model, capsys):
    arguments = (f"--model={model}", f"--prompt={PUZZLE}", "--json", *shape())
    record = json.loads(run(capsys, *arguments, "--policy=top_confidence:tokens_per_step=2").out)
    assert record["nfe"] == 4
    assert sorted(record["step_map"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(record["step_map"][:4]) == [0, 0, 1, 1]
    assert len(record["tokens"]) == len(record["confidence"]) == 8
    assert all(0 < value <= 1 for value in record["confidence"])
    assert record["prompt_tokens"] == len(PUZZLE)
    assert record["seed"] == 0


def test_with_a_cache_it_says_what_was_saved(model, capsys):
    arguments = (f"--model={model}", f"--prompt={PUZZLE}", "--json", *shape())
    arguments = (*arguments, "--policy=top_confidence:tokens_per_step=1", "--cache=dual")
    record = json.loads(run(capsys, *arguments).out)
    assert (record["cache"], record["nfe"]) == ("dual", 8)
    assert record["cost"] == pytest.approx(2 + 6 * 4 / (len(PUZZLE) + 8))
    found = fails(capsys, *arguments[:-1], "--cache=block")
    assert "cache 'block' is for block-causal denoisers" in found
    assert "no cache 'duel'" in fails(capsys, *arguments[:-1], "--cache=duel")


def test_seed_decides_what_is_drawn(model, capsys):
    def tokens(seed):
        out = run(
            capsys,
            *(f"--model={model}", f"--prompt={PUZZLE}", "--json", *shape(), f"--seed={seed}"),
            *("--temperature=1", "--policy=random:tokens_per_step=1"),
        ).out
        return json.loads(out)["tokens"]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_trace_shows_every_step_without_colour_off_a_terminal(model, capsys):
    out = run(
        capsys,
        *(f"--model={model}", f"--prompt={PUZZLE}", "--trace", *shape()),
        "--policy=top_confidence:tokens_per_step=1",
    ).out
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:8]] == [str(k) for k in range(1, 9)]
    assert all("+1" in line for line in lines[:8])
    assert lines[0].count("_") == 7
    assert lines[7].count("_") == 0
    assert "\x1b" not in out


def test_live_view_off_a_terminal_is_the_trace_on_standard_error(model, capsys):
    arguments = (f"--model={model}", f"--prompt={PUZZLE}", *shape())
    live = run(capsys, *arguments, "--live", "--json", "--policy=top_confidence:tokens_per_step=3")
    trace = run(capsys, *arguments, "--trace", "--policy=top_confidence:tokens_per_step=3").out
    assert live.err.splitlines() == trace.splitlines()[:4]
    assert json.loads(live.out)["nfe"] == 4


def test_html_holds_every_step(model, capsys, tmp_path):
    path = tmp_path / "made" / "page.html"
    arguments = (f"--model={model}", f"--prompt={PUZZLE}", "--json", *shape(), f"--html={path}")
    out = run(capsys, *arguments, "--policy=top_confidence:tokens_per_step=3").out
    record = json.loads(out)
    data = path.read_text().partition('id="data">')[2].partition("</script>")[0]
    (problem,) = json.loads(data)["problems"]
    (trace,) = problem["traces"]
    assert problem["prompt"] == PUZZLE
    assert trace["step_map"] == record["step_map"]
    assert len(trace["steps"]["candidates"]) == trace["nfe"] == record["nfe"] == 4
    assert trace["blocks"] == [0, 4]
    assert "directory" in fails(capsys, *arguments[:-1], f"--html={tmp_path}")


def test_a_task_poses_and_judges(model, capsys):
    shown = run(capsys, f"--model={model}", "--task=sudoku", "--problem=3", *shape(16, 16))
    assert "; score 0" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy=treshold",), "mean threshold"),
        (("--gen_length=10", "--block_length=4"), "gen_length = 10"),
        (("--gen_length=0",), "gen_length = 0"),
        (("--temperature=-1", *shape()), "--temperature = -1.0"),
        (("--gen_length=48",), "gen_length=48"),
        (("--temperature=nan", *shape()), "--temperature = nan"),
        (("--temperature=inf", *shape()), "--temperature = inf"),
        (("--policy=top_confidence:tokens_per_step=99999999999", *shape()), "tokens_per_step"),
        (("--seed=-1", *shape()), "--seed"),
        (("--seed=99999999999999999999", *shape()), "--seed"),
        (("--pace=-1", *shape()), "--pace = -1.0"),
        (("--model=/no/such/model", *shape()), "/no/such/model"),
        (("--policy=learned:gs://bucket/policy", *shape()), "gs://bucket/policy: only paths"),
        (("--html=gs://bucket/page.html", *shape()), "gs://bucket/page.html: only paths"),
        (("--chat", *shape()), "chat template"),
    ],
)
def test_says_what_is_wrong(model, capsys, arguments, message):
    found = fails(capsys, f"--model={model}", f"--prompt={PUZZLE}", *arguments)
    assert message in found
    assert found.count("error:") == 1


def test_an_unknown_word_gets_an_example(capsys):
    found = fails(capsys, "--model=arithmetic", "--prompt=Tom has 3 pears")
    assert "' pears'" in found
    assert "such as ' " in found


def test_says_which_number_of_forwards_was_asked_for():
    settings = types.SimpleNamespace(gen_length=16)
    answer = types.SimpleNamespace(nfe=5, policy="learned:universal,nfe=3", settings=settings)
    counted = "NFE 5 (asked for 3, on average over prompts) for 16 positions"
    assert generate.counted(answer) == counted
    answer.policy = "threshold:threshold=0.9"
    assert generate.counted(answer) == "NFE 5 for 16 positions"


def test_needs_a_prompt(model, capsys, tmp_path, monkeypatch):
    assert "--prompt=" in fails(capsys, f"--model={model}")
    missing = fails(capsys, f"--model={model}", "--task=sudoku", "--problem=-1")
    assert "--problem = -1" in missing
    hub_cache.use(monkeypatch, tmp_path)  # Neither a network nor a copy.
    for task in ("math", "humaneval", "sudoku_puzzles"):
        found = fails(capsys, f"--model={model}", f"--task={task}")
        assert found.startswith("error: ") and "\n" not in found
        assert "--data=DIR" in found


def test_a_policy_of_several_environments_acts_as_in_that_of_the_model(tmp_path, caplog):
    policy = LearnedPolicy(NetworkConfig(hidden_dim=8, num_heads=1, alphas=(0.1, 10.0)))
    places = [MadeFor("sudoku", "sudoku", 16, 16, "threshold")]
    places.append(MadeFor("countdown", "countdown", 8, 8, "threshold"))
    in_blocks = MadeFor("sudoku", "sudoku", 16, 4, "threshold")
    save_policy(tmp_path, policy, policy.init_params(jax.random.key(0)), [*places, in_blocks])
    for place in places:
        named = [f"--policy=learned:{tmp_path}", f"--model={place.model}"]
        args = generate.parser().parse_args(named)
        generate.fill_in(args)
        found = (args.task, args.gen_length, args.block_length)
        assert found == (place.task, place.gen_length, place.block_length)
    assert "trained for" not in caplog.text
    args = generate.parser().parse_args([f"--policy=learned:{tmp_path}", "--model=arithmetic"])
    generate.fill_in(args)
    assert "sudoku, countdown (here arithmetic)" in caplog.text
    assert args.gen_length is None
    with pytest.raises(ValueError, match="--model is missing"):
        generate.fill_in(generate.parser().parse_args([f"--policy=learned:{tmp_path}"]))


def test_a_shipped_policy_says_where_and_how_it_acts(capsys, caplog):
    """As the tables measured it: model, task, canvas, blocks and distribution."""
    policy = "--policy=learned:sudoku-seed0,alpha=10"
    record = json.loads(run(capsys, policy, "--json", "--problem=1").out)
    assert (record["model"], record["score"], len(record["tokens"])) == ("sudoku", 1, 16)
    assert record["nfe"] <= 3
    assert "trained for" not in caplog.text
    args = generate.parser().parse_args([policy, "--block_length=4", "--task=sudoku"])
    generate.fill_in(args)
    assert "block_length 16 (here 4)" in caplog.text
    # Asked for forwards it has a calibration per block length, all of one model.
    args = generate.parser().parse_args(["--policy=learned:sudoku-seed0,nfe=3"])
    generate.fill_in(args)
    assert (args.model, args.task, args.block_length) == ("sudoku", "sudoku", 16)
    assert "--model is missing" in fails(capsys, "--prompt=x", "--policy=threshold")


def test_universal_is_the_default_of_the_denoisers_that_it_was_trained_on(model, caplog):
    for name, expected in (("arithmetic", "learned:universal"), (model, None)):
        args = generate.parser().parse_args([f"--model={name}", "--block_length=4"])
        generate.fill_in(args)
        assert args.policy == expected
    assert not caplog.text
