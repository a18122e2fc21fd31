"""`python -m jax_unmask.bench`, mostly called in this process: each start costs seconds."""

import dataclasses
import json
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_unmask import denoisers
from jax_unmask.benchmarks import hardware, reference, speed, subjects
from jax_unmask.benchmarks.compiled_flops import compiled_flops
from jax_unmask.commands import bench
from jax_unmask.denoisers.flops import forward_flops
from jax_unmask.rollout import RolloutSettings, parse_cache, trajectory
from jax_unmask.rollout.flops import rollout_flops

SHAPE = ("--prompt_length=3", "--gen_length=4", "--block_length=2")
# Reads the weights that it is given and decodes left to right, one forward per position.
REFERENCE = """
import jax
import jax.numpy as jnp
import numpy as np

from jax_unmask import denoisers

CALLS = []


def load(model_dir):
    return denoisers.from_pretrained(model_dir)


def generate(model, prompts, *, gen_length, block_length, policy, settings):
    denoiser, params = model
    CALLS.append((len(prompts), gen_length, block_length, policy, settings))
    mask = denoiser.config.mask_token_id
    canvas = np.full((len(prompts), gen_length), mask)
    apply = jax.jit(denoiser.apply)
    for position in range(gen_length):
        tokens = jnp.asarray(np.concatenate([np.asarray(prompts), canvas], axis=1))
        logits = apply({"params": params}, tokens)[:, -gen_length:]
        canvas[:, position] = np.asarray(logits[:, position].argmax(-1))
    return canvas, gen_length
"""


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch):
    """A small peak; and the command would log to a stream that pytest closes after the test."""
    monkeypatch.setattr(hardware, "MATMUL_SIZE", {"cpu": 64})
    monkeypatch.setattr(hardware, "_SECONDS", 0.0)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return str(tiny_model_dir)


@pytest.fixture
def reference_file(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(REFERENCE)
    return path


def run(capsys, tmp_path, *arguments):
    """The JSON record and the text."""
    path = tmp_path / "out" / "speed.json"
    bench.main([*arguments, f"--json={path}"])
    return json.loads(path.read_text()), capsys.readouterr().out


def fails(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    return str(stopped.value) + capsys.readouterr().err


class TestRollouts:
    def test_numbers_fit_together(self, model, capsys, tmp_path):
        record, text = run(
            capsys,
            tmp_path,
            *(f"--model={model}", "--batch_sizes=2,1", "--repeats=3", *SHAPE),
            "--policy=top_confidence:tokens_per_step=2",
        )
        assert [row["batch_size"] for row in record["rollouts"]] == [1, 2]
        peak = record["matmul_peak"]["tflops_per_second"]
        assert peak > 0
        assert record["matmul_peak"]["size"] == 64
        for row in record["rollouts"]:
            batch, seconds = row["batch_size"], row["seconds_per_rollout"]
            assert seconds == statistics.median(row["seconds"]) > 0
            assert row["compile_seconds"] > 0
            assert row["sequences_per_second"] * seconds == pytest.approx(batch)
            assert row["tokens_per_second"] * seconds == pytest.approx(4 * batch)
            assert row["nfe_mean"] == row["forwards"] == 2
            assert row["seconds_per_forward"] * 2 == pytest.approx(seconds)
            assert row["useful_forward_fraction"] == 1
            flops = row["flops_per_forward"] * row["forwards"]
            assert row["tflops_per_second"] * seconds == pytest.approx(flops / 1e12)
            assert row["share_of_matmul_peak"] * peak == pytest.approx(row["tflops_per_second"])
            # At least the weights, which are arguments of the program.
            assert row["program_bytes"] > 4 * denoisers.count_params(denoiser(model).config)
        assert record["settings"]["gen_length"] == 4
        assert record["environment"]["platform"] == "cpu"
        assert "ms/forward" in text
        assert record["command"].startswith("python -m jax_unmask.bench --model=")

    def test_rows_take_turns_in_the_slots(self, model, capsys, tmp_path):
        arguments = (f"--model={model}", "--batch_sizes=2", "--repeats=1", *SHAPE)
        found, _ = run(capsys, tmp_path, *arguments, "--slots=1")
        (row,) = found["rollouts"]
        assert (row["batch_size"], row["slots"], row["nfe_mean"]) == (2, 1, 4)
        # One row, then the other.
        assert row["forwards"] == 8
        assert row["useful_forward_fraction"] == 1
        assert row["flops_per_rollout"] == 8 * forward_flops(denoiser(model).config, 7, 2)

    def test_records_are_kept_case_by_case(self, model, capsys, tmp_path, monkeypatch):
        """What was measured is on disk when the next case fails; without --slots all rows run."""
        measure, path = speed.measure_speed, tmp_path / "speed.json"

        def measured(*arguments, **options):
            if path.exists():
                raise ValueError("enough")
            return measure(*arguments, **options)

        monkeypatch.setattr(speed, "measure_speed", measured)
        # As on a GPU, where rollouts have few slots by default.
        monkeypatch.setattr(trajectory.accelerators, "platform", lambda: "gpu")
        monkeypatch.setenv("JAX_UNMASK_ATTENTION", "plain")
        fails(
            capsys,
            *(f"--model={model}", "--batch_sizes=2,3", "--repeats=1", *SHAPE, f"--json={path}"),
        )
        (row,) = json.loads(path.read_text())["rollouts"]
        assert row["slots"] == row["batch_size"] == 2

    def test_a_shipped_model_knows_its_lengths(self, capsys, tmp_path):
        record, _ = run(
            capsys,
            tmp_path,
            *("--model=sudoku", "--policy=top_confidence:tokens_per_step=4"),
            *("--batch_sizes=1", "--repeats=1"),
        )
        settings, (row,) = record["settings"], record["rollouts"]
        assert (settings["gen_length"], settings["block_length"]) == (16, 4)
        assert (row["prompt_length"], row["forwards"]) == (17, 4)

    def test_a_preset(self, capsys, tmp_path):
        arguments = ("--preset=tiny", "--batch_sizes=1", "--repeats=1", *SHAPE)
        record, text = run(capsys, tmp_path, *arguments)
        assert record["denoiser"]["hidden_size"] == 64
        assert record["rollouts"][0]["nfe_mean"] == 4
        assert text.startswith("tiny, top_confidence:tokens_per_step=1, prompt 3, canvas 4")


def denoiser(model):
    return denoisers.from_pretrained(model)[0]


class TestReference:
    def test_equal_work_on_equal_weights_gives_equal_tokens(
        self, model, reference_file, capsys, tmp_path
    ):
        record, text = run(
            capsys,
            tmp_path,
            *(f"--model={model}", "--batch_sizes=2", "--repeats=2", *SHAPE),
            *("--policy=left_to_right:tokens_per_step=1", f"--reference={reference_file}"),
        )
        assert record["reference"] == str(reference_file)
        pairs = zip(record["rollouts"], record["comparisons"], strict=True)
        for row, comparison in pairs:
            assert comparison["batch_size"] == row["batch_size"]
            assert comparison["tokens_equal"]
            assert comparison["nfe_equal"]
            assert comparison["rows_equal"] == comparison["positions_equal"] == 1
            assert len(comparison["seconds"]) == len(comparison["speedup_by_turn"]) == 2
            theirs = comparison["sequences_per_second"]
            assert comparison["speedup"] * theirs == pytest.approx(row["sequences_per_second"])
            assert comparison["speedup_at_equal_nfe"] == pytest.approx(comparison["speedup"])
        assert "ours is faster by" in text
        calls = sys.modules["jax_unmask_reference_theirs"].CALLS
        settings = {"tokens_per_step": 1, "steps": 0}
        assert calls == [
            (batch, 4, 2, "left_to_right:tokens_per_step=1", settings) for batch in (2, 2, 2)
        ]

    def test_compare_counts_rows_and_positions(self):
        ours = np.array([[1, 2], [3, 4], [5, 6], [7, 8]]), np.array([2, 2, 2, 2])
        theirs = np.array([[1, 2], [3, 4], [5, 6], [7, 0]]), np.array([2, 2, 2, 4])
        found = reference.compare([1.0, 2.0, 3.0], [6.0, 6.0, 9.0], ours, theirs)
        assert not found.tokens_equal
        assert not found.nfe_equal
        assert (found.rows_equal, found.positions_equal) == (0.75, 0.875)
        assert found.speedup == 3.0
        assert found.speedup_by_turn == [6.0, 3.0, 3.0]
        assert found.speedup_at_equal_nfe == pytest.approx(3.0 * 2 / 2.5)
        assert found.sequences_per_second == pytest.approx(4 / 6)

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("def load(model_dir): ...", ["function generate"]),
            ("def generate(*_, **__): ...", ["function load"]),
            (
                "load = print\ndef generate(*_, **__): return [[1, 2, 3, 4, 5]], 4",
                ["tokens", "(1, 5)", "(1, 4)"],
            ),
            (
                "load = print\ndef generate(*_, **__): return [[1, 2, 3, 4]], [4, 4]",
                ["nfe", "(2,)", "(1,)"],
            ),
            (
                "load = print\ndef generate(*_, **__): return [[1, 2, 3, 4]]",
                ["generate", "(tokens, nfe)"],
            ),
        ],
    )
    def test_says_what_is_wrong_with_the_file(self, model, capsys, tmp_path, text, named):
        path = tmp_path / "wrong.py"
        path.write_text(text)
        arguments = (f"--model={model}", f"--reference={path}", "--batch_sizes=1", *SHAPE)
        message = fails(capsys, *arguments)
        assert all(each in message for each in [str(path), *named])

    def test_a_fault_inside_the_file_keeps_its_traceback(self, model, tmp_path):
        path = tmp_path / "faulty.py"
        path.write_text("def generate(*_): ...\ndef load(model_dir): raise ValueError('inside')")
        with pytest.raises(RuntimeError, match=r"faulty.py: load .*: inside") as raised:
            bench.main([f"--model={model}", f"--reference={path}", "--batch_sizes=1", *SHAPE])
        assert isinstance(raised.value.__cause__, ValueError)


class TestBreakdown:
    @pytest.mark.thorough
    def test_shares_add_up(self, write_experiment, capsys, tmp_path):
        path = write_experiment(tmp_path / "experiment.py")
        settings = ("--steps=2", "--config.rollout.group_size=2")
        record, text = run(capsys, tmp_path, "--breakdown", f"--config={path}", *settings)
        found = record["breakdown"]
        assert set(found["shares"]) == {"data", "rollout", "reward", "update", "other"}
        assert sum(found["shares"].values()) == pytest.approx(1)
        assert sum(found["phase_seconds"].values()) * 2 == pytest.approx(sum(found["seconds"]))
        assert all(found["shares"][name] > 0 for name in ("rollout", "reward", "update"))
        assert found["rollouts_per_step"] == 4
        assert found["seconds_per_step"] == pytest.approx(statistics.median(found["seconds"]))
        assert found["first_step_seconds"] > found["seconds_per_step"]
        assert 1 <= found["nfe_mean"] <= 16
        assert "share %" in text

    def test_says_what_is_wrong(self, model, write_experiment, capsys, tmp_path):
        path = write_experiment(tmp_path / "experiment.py")
        given = ("--breakdown", f"--config={path}")
        assert "give --config=FILE.py" in fails(capsys, "--breakdown")
        assert "--steps = 0" in fails(capsys, *given, "--steps=0")
        assert f"--model = '{model}'" in fails(capsys, *given, f"--model={model}")
        assert "groupsize" in fails(capsys, *given, "--config.rollout.groupsize=3")
        found = fails(capsys, *given, "--config.rollout.block_length=3")
        assert found.startswith("error: config.rollout.block_length = 3")
        assert "no/such.py" in fails(capsys, "--breakdown", "--config=no/such.py")
        sft = tmp_path / "sft.py"
        sft.write_text("from jax_unmask import recipes\nget_config = lambda: recipes.config('sft')")
        assert "config.recipe = 'sft'" in fails(capsys, "--breakdown", f"--config={sft}")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ("--model", "--preset")),
        (("--preset=tiny", "--model=x"), ("--model", "--preset")),
        (("--preset=llada8b",), ("--preset=llada8b", "llada-8b")),
        (("--preset=tiny", "--gen_length=10"), ("gen_length", "10", "8")),
        (("--preset=tiny", "--prompt_length=4090"), ("4096", "--prompt_length")),
        (("--preset=tiny", "--prompt_length=0"), ("--prompt_length = 0",)),
        (("--preset=tiny", "--gen_length=0"), ("gen_length", "0")),
        (("--preset=tiny", "--batch_sizes=1,x"), ("--batch_sizes = '1,x'",)),
        (("--preset=tiny", "--batch_sizes=0"), ("--batch_sizes = '0'",)),
        (("--preset=tiny", "--repeats=0"), ("--repeats = 0",)),
        (("--preset=tiny", "--policy=treshold"), ("threshold",)),
        (("--preset=tiny", "--task=sudoku"), ("--task",)),
        (("--preset=tiny", "--config=x.py"), ("--config", "--breakdown")),
        (("--preset=tiny", "--config.seed=1"), ("--config.seed=1",)),
        (("--preset=tiny", "--vocab_chunk=0"), ("vocab_chunk", "0")),
        (("--model=/no/such", *SHAPE), ("/no/such",)),
        (("--model=/no/such",), ("--gen_length", "--block_length")),
        (("--model=sudoku", "--task=math"), ("math", "--data")),
        (("--model=sudoku", "--cache=block"), ("cache 'block'",)),
        (("--model=sudoku", "--reference=/no/such.py"), ("--reference=/no/such.py", "not a file")),
    ],
)
def test_says_what_is_wrong(capsys, arguments, names):
    found = fails(capsys, *arguments)
    assert all(name in found for name in names), found
    assert found.startswith("error: ")


def test_a_task_prompt_must_fit(model, capsys):
    arguments = (f"--model={model}", "--task=sudoku", "--gen_length=4", "--block_length=4")
    assert "17 tokens" in fails(capsys, *arguments, "--prompt_length=5")
    found = fails(
        capsys, f"--model={model}", "--task=sudoku", "--gen_length=60", "--block_length=1"
    )
    assert "--prompt_length = 17" in found and " 60 " in found


def test_flops_are_those_of_the_program():
    """XLA's count of a program holds every other operation too, which is little at this width."""
    config = subjects.small_llada(512, 128, 1, 4, 384)
    denoiser = denoisers.Denoiser(config)
    batch, prompt, canvas = 2, 24, 40

    def forward(params, tokens):
        hidden = denoiser.apply({"params": params}, tokens, last=canvas, method="hidden")
        return denoiser.apply({"params": params}, hidden, method="logits")

    tokens = jax.ShapeDtypeStruct((batch, prompt + canvas), jnp.int32)
    lowered = jax.jit(forward).lower(denoisers.abstract_params(config), tokens)
    counted = lowered.cost_analysis()["flops"]
    ours = batch * forward_flops(config, prompt + canvas, canvas)
    assert ours <= counted <= 1.05 * ours


@pytest.mark.parametrize(("cache", "scored"), [("none", 16), ("block", 32)])
def test_flops_of_every_step_are_those_of_its_program(cache, scored):
    """The compiler counts all operations, and a loop's body once: see `compiled_flops`."""
    cache = parse_cache(cache)
    config = subjects.small_llada(512, 128, 4, 4, 384)
    if cache is not None and cache.kind == "block":
        config = dataclasses.replace(config, attention_block=16)
    settings = RolloutSettings(gen_length=32, block_length=16, cache=cache)
    ours, counted = (
        count(config, settings, 24, scored) for count in (rollout_flops, compiled_flops)
    )
    assert ours.full <= counted.full <= 1.06 * ours.full
    assert ours.cached <= counted.cached <= 1.06 * ours.cached
    assert (ours.cached == 0) == (cache is None)


def test_caches_are_measured_beside_each_other_and_the_reference_without_one(
    model, capsys, reference_file, tmp_path
):
    arguments = (f"--model={model}", f"--reference={reference_file}", "--repeats=1", *SHAPE)
    assert "leave out --cache" in fails(capsys, *arguments, "--cache=dual")
    record, text = run(
        capsys, tmp_path, *arguments, "--cache=none", "--cache=dual", "--batch_sizes=2"
    )
    assert [each["batch_size"] for each in record["comparisons"]] == [2]
    plain, dual = record["rollouts"]
    assert (plain["cache"], dual["cache"]) == ("none", "dual")
    assert plain["nfe_mean"] == dual["nfe_mean"] == plain["cost_mean"] == 4
    # Two openings of 7 positions, of one row each, and two steps in blocks of 2.
    assert (dual["full_forwards"], dual["full_rows"], dual["cached_forwards"]) == (4, 1, 2)
    assert dual["cost_mean"] == pytest.approx(2 + 2 * 2 / 7)
    assert dual["useful_forward_fraction"] == 1
    # Four forwards of two rows without a cache, which score a block of 2.
    config = denoiser(model).config
    assert plain["flops_per_rollout"] == 8 * forward_flops(config, 7, 2)
    assert dual["flops_per_rollout"] != plain["flops_per_rollout"]
    assert dual["compiled_flops_per_rollout"] is None
    assert "dual" in text


@pytest.mark.parametrize(("name", "billions"), [("llada-8b", 8.0), ("llada-100m", 0.1)])
def test_presets_have_the_size_that_they_are_named_for(name, billions):
    preset = subjects.find_preset(name)
    assert denoisers.count_params(preset.config) / 1e9 == pytest.approx(billions, rel=0.05)
    assert preset.gen_length % preset.block_length == 0


def test_random_weights_never_propose_the_mask_token():
    config = subjects.find_preset("tiny").config
    subject = subjects.random_subject("tiny", config, seed=0)
    tokens = jnp.full((2, 61), config.mask_token_id)
    logits = subject.denoiser.apply({"params": subject.params}, tokens)
    assert not (logits.argmax(-1) == config.mask_token_id).any()
