"""ShellCheck on all shell that this repository runs."""

import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
BENCHMARK = ROOT / "docs" / "benchmarks" / "gpu.sh"
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("docs/**/*.sh"), ROOT / ".ci" / "run"])


def check(*arguments: str, text: str | None = None) -> str:
    beside_python = pathlib.Path(sys.executable).parent
    program = shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}")
    assert program, "pip install 'jax_unmask[test]' brings shellcheck"
    done = subprocess.run(
        [program, *arguments], input=text, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts(script):
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert script.stat().st_mode & 0o111
    assert check(str(script)) == ""


@pytest.mark.parametrize("key", ["setup", "run"])
def test_scripts_of_skypilot(key):
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    assert check("--shell=bash", "-", text=task[key]) == ""


def test_benchmark_of_a_gpu_ends_in_time(tmp_path):
    """Its first four stages fit into the limit, and none that hangs holds up the rest."""
    stages = re.findall(r"^ *stage (\S+) (\d+)", BENCHMARK.read_text(), re.MULTILINE)
    grace = 5
    assert sum(int(seconds) + grace for _, seconds in stages[:4]) <= 470

    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n[[ $1 == -c ]] && exit 1\n[[ $1 == -m ]] && sleep 600\n"
    )
    python.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = os.environ | {"LIMIT": "9", "PATH": path}
    subprocess.run([BENCHMARK, tmp_path / "out"], env=environment, check=False, timeout=120)
    _, *lines = (tmp_path / "out" / "stages.txt").read_text().splitlines()
    results = {name: result for name, _, result in (line.split(maxsplit=2) for line in lines)}
    assert list(results) == [name for name, _ in stages]
    assert "2 s" in results["exact"] and "failed" in results["exact"]
    assert "left out" in results["int8"] and "PyTorch" in results["public"]
    assert sum(int(line.split()[1]) for line in lines) <= 9


def rolled(seconds, nfe, **more):
    """What a benchmark records of a rollout of 64 rows."""
    return {
        "seconds_per_rollout": seconds,
        "nfe_mean": nfe,
        "seconds_per_forward": seconds / nfe,
        "tokens_per_second": 64 * 256 / seconds,
        "slots": 64,
        "tflops_per_second": 500.0,
        "program_bytes": None,
    } | more


def test_table_of_the_benchmark_of_a_gpu(tmp_path):
    """Figures at other numbers of forwards are brought to the same one, and compared with goals."""
    table = runpy.run_path(str(BENCHMARK.with_suffix(".py")))["table"]
    shown = {"model": "llada-8b", "environment": {"device": "NVIDIA H100 80GB HBM3"}}
    weights = 8_015_581_184 * 2
    records = {
        "exact": [rolled(10.0, 16.0, program_bytes=weights + 64 * 300_000_000)],
        "dual": [rolled(10.0, 88.0)],
        "latency": [rolled(2.048, 256.0, slots=1)],
    }
    for name, rollouts in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(shown | {"rollouts": rollouts}))
    found = {line.figure: line for line in table(tmp_path)}

    def check(start, measured, reached):
        line = next(line for figure, line in found.items() if figure.startswith(start))
        assert line.measured == pytest.approx(measured) and line.reached is reached

    check("of the peak", 100 * 500 / 989, False)
    check("tokens/s at NFE 162", 64 * 256 / 10 * 16 / 162, True)
    check("GB per sequence", 0.3, False)
    check("dual cache, 64 rows", 5.5, True)
    check("dual cache, 1 row", 8.0, True)
    missing = next(line for figure, line in found.items() if "public" in figure)
    assert missing.measured is None and missing.reached is None


@pytest.mark.slow
def test_rehearsal_of_the_benchmark_of_a_gpu(tmp_path):
    """Every stage but the one beside the public sampler, with a tiny model."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [BENCHMARK, tmp_path],
        env=os.environ | {"PRESET": "tiny", "LIMIT": "1800", "PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    heading, *stages = (tmp_path / "stages.txt").read_text().splitlines()
    assert heading == "stage seconds result"
    assert len(stages) == 6
    for stage in stages:
        name, _, result = stage.split(maxsplit=2)
        if name == "public":
            continue
        assert result == "done", done.stdout
        assert json.loads((tmp_path / f"{name}.json").read_text())
    lines = json.loads((tmp_path / "table.json").read_text())
    missing = {line["figure"] for line in lines if line["measured"] is None}
    assert missing <= {"exact, 8 rows: times as fast as the public sampler"}
