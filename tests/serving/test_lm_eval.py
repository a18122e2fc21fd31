"""lm-evaluation-harness as a client: its own command, `local-chat-completions`."""

import json
import os
import shutil
import subprocess

import pytest

from jax_unmask.tasks.sudoku import grids

COMMAND = os.environ.get("LM_EVAL") or shutil.which("lm_eval")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMMAND is None,
        reason="no lm_eval: pip install 'lm-eval[api]', or name one in the variable LM_EVAL",
    ),
]

_TASK = """
task: grids
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{solution}}}}"
generation_kwargs: {{until: ["="], max_gen_toks: 16, do_sample: false, temperature: 0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def test_it_measures_the_model(server, tmp_path):
    """Sudokus with four holes have one solution, nearly always; the shipped model finds it."""
    problems = []
    for number, grid in enumerate(grids()[::9]):
        cells = [str(digit) for digit in grid]
        for hole in range(number % 4, 16, 4):
            cells[hole] = "."
        problems.append({"prompt": "".join(cells) + "=", "solution": "".join(map(str, grid))})
    file = tmp_path / "grids.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    (tmp_path / "grids.yaml").write_text(_TASK.format(file=file))
    address = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    subprocess.run(
        [
            str(COMMAND),
            *("--model", "local-chat-completions", "--tasks", "grids"),
            *("--include_path", str(tmp_path), "--apply_chat_template"),
            *("--model_args", f"model=sudoku,base_url={address},num_concurrent=8"),
            *("--output_path", str(tmp_path / "out.json")),
        ],
        check=True,
        env={**os.environ, "OPENAI_API_KEY": "none", "HF_HOME": str(tmp_path)},
    )
    (found,) = tmp_path.rglob("*out*.json")
    results = json.loads(found.read_text())["results"]["grids"]
    assert results["exact_match,none"] > 0.7
