"""`jax-unmask`: the list of commands, help without imports, and what every command begins with."""

import io
import json
import shlex
import subprocess
import sys
import types

import pytest

from jax_unmask import console
from jax_unmask.commands import bench, command_line, convert, generate, harness, hub, serve
from jax_unmask.runtime import compilation, terminal
from jax_unmask.shipped import assets


def test_help_is_that_of_the_commands():
    from jax_unmask.commands import help

    assert json.loads((assets() / "help.json").read_text()) == help.pages(), (
        "run python -m jax_unmask.commands.help > jax_unmask/assets/help.json"
    )


def test_lists_all_commands(capsys):
    console.main([])
    shown = capsys.readouterr().out
    for name in console.COMMANDS:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", console.COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    console.main([name, "--help"])
    assert f"  jax-unmask {name}" in capsys.readouterr().out


def test_help_of_training_has_configs_and_keys(capsys):
    console.main(["train", "--help"])
    shown = capsys.readouterr().out
    for part in ("  quickstart ", "  --workdir:", "  train.steps = ", "recipe tracerl:"):
        assert part in shown


def test_help_imports_no_jax():
    found = (
        "import sys; from jax_unmask import console; console.main(['train', '--help']);"
        "print('jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert out.stdout.endswith("False\n")


def test_an_unknown_command_gets_a_suggestion():
    with pytest.raises(SystemExit, match="mean train"):
        console.main(["trian"])


def test_code_of_ones_own_is_found_where_one_works(tmp_path, monkeypatch):
    elsewhere = [path for path in sys.path if path not in ("", str(tmp_path))]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "run", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["jax-unmask"])
    for is_safe, added in ((False, [str(tmp_path)]), (True, [])):
        monkeypatch.setattr(sys, "path", list(elsewhere))
        monkeypatch.setattr(sys, "flags", types.SimpleNamespace(safe_path=is_safe))
        for _ in range(2):  # Once, however often.
            console.main(["configs"])
        assert sys.path == [*added, *elsewhere]


def test_configs_lists_and_prints(capsys):
    console.main(["configs"])
    assert "  gsm8k " in capsys.readouterr().out
    console.main(["configs", "gsm8k"])
    assert "def get_config" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no experiment"):
        console.main(["configs", "none"])


def test_a_variable_that_jax_cannot_read_is_one_line(monkeypatch):
    def read(name):
        raise ValueError('Invalid value "abc" for JAX flag jax_num_cpu_devices')

    monkeypatch.setattr(console.importlib, "import_module", read)
    with pytest.raises(SystemExit, match=r'error: .*"abc" .* jax_num_cpu_devices'):
        console.run("train")


@pytest.mark.parametrize(
    ("said", "kind"), [(command_line._NO_DEVICES, SystemExit), ("x", RuntimeError)]
)
def test_devices_that_there_are_not_are_one_line(said, kind):
    with pytest.raises(kind, match=said), command_line.clear_errors():
        raise RuntimeError(f"{said} 'cuda'")


@pytest.mark.parametrize(
    ("redirected", "status", "words"),
    [(">&-", 0, ""), ("<&- >&- 2>&-", 0, ""), ("| true", 141, ""), (">/dev/full", 1, "No space")],
)
def test_output_that_is_closed_or_full(redirected, status, words):
    code = "import time; from jax_unmask import console; time.sleep(0.2); console.main([])"
    command = f"{shlex.join([sys.executable, '-c', code])} {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == status
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_a_lost_output_is_no_error_of_what_is_done(monkeypatch, caplog):
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(full))
        terminal.conclude(["accuracy 0.5"])
    assert "[Errno 28]" in caplog.text


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (bench, ["--preset=tiny", "--repeats=0"]),
        (bench, ["--preset=tiny", "--repeats=0", "--quantization=int8"]),
        (convert, ["--source=x", "--output=y", "--max_shard_gb=0"]),
        (generate, ["--pace=-1"]),
        (generate, ["--pace=-1", "--quantization=int8"]),
        (harness, ["--model=x", "--tasks=y", "--policy=treshold"]),
        (hub, ["pull", "me/it"]),
        (serve, ["--model=/no/such"]),
    ],
)
def test_every_command_chooses_flags_of_the_compiler(command, arguments, monkeypatch):
    """All measure, and write, with the programs that training has."""
    chosen = []
    monkeypatch.setattr(compilation, "choose_flags", chosen.append)
    with pytest.raises(SystemExit, match=r"^error: "):
        command.main(arguments)
    assert chosen == ["--quantization=int8" in arguments]


@pytest.mark.parametrize(("said", "shown"), [("Event loop is closed", ""), ("Other", "Other")])
def test_what_threads_of_orbax_leave_behind(said, shown, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "__unraisablehook__", lambda given: seen.append(str(given.exc_value)))
    given = types.SimpleNamespace(exc_value=RuntimeError(said))
    command_line._say_what_nobody_can_catch(given)
    assert "".join(seen) == shown
