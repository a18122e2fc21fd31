"""`python -m jax_unmask.harness`, on small tasks of the harness's own format."""

import functools
import json
import math
import sys

import pytest

import fake_harness
from jax_unmask.commands import harness

PUZZLE = "1234341221434321="
GENERATE = """
task: local_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
target_delimiter: ""
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["="]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
CHOOSE = """
task: local_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
target_delimiter: ""
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: ["1234", "4321"]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def fails(*arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        harness.main(arguments)
    return str(stopped.value)


def test_without_the_harness_the_error_says_what_to_install(monkeypatch, tiny_model_dir):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    message = fails(f"--model={tiny_model_dir}", "--tasks=gsm8k")
    assert "pip install 'jax_unmask[harness]'" in message


def test_a_wrong_policy_comes_first():
    assert "mean threshold" in fails("--model=x", "--tasks=y", "--policy=treshold")


@pytest.mark.thorough
def test_an_odd_request_ends_only_itself(monkeypatch):
    """Words that the vocabulary lacks, nothing at all, more than the model's length of 33."""
    model = fake_harness.model_class(monkeypatch).load(
        "sudoku", gen_length=8, block_length=4, batch_size=2, mc_draws=4, mc_batch_size=4
    )
    ask = functools.partial(fake_harness.ask, model)

    odd = [("12..", ""), ("12", "x!"), ("1" * 50, "2" * 33), ("1" * 50, "2" * 40)]
    empty, unknown, whole, cut, usual = ask("loglikelihood", *odd, ("12..", "34"))
    assert (empty, unknown) == ((0.0, True), (-math.inf, False))
    assert whole == cut
    assert -math.inf < whole[0] < usual[0] < 0
    assert ask("loglikelihood_rolling", ("12..",), ("x",), ("",))[1:] == [-math.inf, 0.0]
    texts = ask("generate_until", ("12..=", {}), ("x", {}), ("", {}))
    assert [bool(text) for text in texts] == [True, False, True]
    whole, stop = texts[0], texts[0][2]
    for until in (stop, ["", stop], ["x", stop]):  # An empty string stops nothing.
        (text,) = ask("generate_until", ("12..=", {"until": until}))
        assert text == whole[: whole.index(stop)]


class TestWithTheHarness:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")

    def test_runs_tasks_of_both_kinds(self, tiny_model_dir, tmp_path, capsys):
        data, tasks = tmp_path / "data.jsonl", tmp_path / "tasks"
        tasks.mkdir()
        rows = [{"question": "12..=", "answer": "1"}, {"question": "1..4321=", "answer": "2"}]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tasks / "generate.yaml").write_text(GENERATE.format(data=data))
        (tasks / "choose.yaml").write_text(CHOOSE.format(data=data))
        harness.main(
            [
                *(f"--model={tiny_model_dir}", f"--include_path={tasks}"),
                *("--tasks=local_generate,local_choose", f"--output={tmp_path / 'out.json'}"),
                *("--gen_length=8", "--block_length=4", "--batch_size=4"),
                *("--mc_draws=8", "--mc_batch_size=4"),
            ]
        )
        shown = capsys.readouterr().out
        assert "local_generate" in shown
        assert "2 texts" in shown
        found = json.loads((tmp_path / "out.json").read_text())
        assert 2 <= found["nfe_mean"] <= 8
        assert 0 <= found["results"]["local_choose"]["acc,none"] <= 1
        assert "exact_match,none" in found["results"]["local_generate"]
        message = fails(f"--model={tiny_model_dir}", "--tasks=no_such_task")
        assert "--tasks = 'no_such_task'" in message

    def test_texts_do_not_depend_on_the_batch_and_end_at_stops(self, tiny_model_dir):
        from lm_eval.api.instance import Instance

        from jax_unmask.evaluation.harness_model import HarnessModel

        def answers(batch_size, until):
            model = HarnessModel.load(
                str(tiny_model_dir), gen_length=8, block_length=4, batch_size=batch_size
            )
            arguments = [(PUZZLE, {"until": until}), (PUZZLE[:5], {"until": until})]
            return model.generate_until(
                [Instance("generate_until", {}, each, k) for k, each in enumerate(arguments)]
            )

        whole = answers(2, [])
        assert whole == answers(1, [])
        assert all(whole)
        stop = whole[0][1]
        assert answers(2, [stop]) == [text.partition(stop)[0] for text in whole]
