"""Any value of any setting or flag either runs, or is refused at once with one message about it."""

import argparse
import contextlib
import importlib
import io
import math
import random
import signal
import time

import hypothesis
import jax
import pytest
from absl import flags
from hypothesis import strategies as st

from jax_unmask import denoisers, recipes
from jax_unmask.commands import bench, command_line, generate, harness, plan, serve, train
from jax_unmask.commands import calibrate as calibrate_command
from jax_unmask.evaluation import measure
from jax_unmask.recipes import joint, policy_grpo, rollouts, sft, state_sft, tracerl
from jax_unmask.runtime import accelerators, compilation, distributed
from jax_unmask.settings import ConfigError, Setting, declared

SECONDS = 10  # Until something would be compiled.
# A curriculum has stages only, see LINES.
RECIPES = tuple(name for name in recipes.RECIPES if name != "curriculum")
# One writes where it says; the other chooses the settings.
LEFT_OUT = ("export", "recipe")

_EDGES = (0, 1, -1, 2, 3, 7, 64, 1000, 10**5, 10**6, 2**31 - 1, 2**31, 10**11, 2**63, 10**400)
_FLOATS = (*map(float, _EDGES[:-1]), 0.5, 1e-300, 1e-30, 1e30, 1e300, math.inf, -math.inf, math.nan)
_TEXTS = ("", "x", "none", "None", "a=b", ":=", "\x00", "\x1b[31m", "../..", "/", "x" * 5000, "é|@")

_ANYTHING = (None, True, 1, 1.5, "x", (), (1, "x"), {"a": 1}, b"x")


class Compiled(Exception):
    """The values were accepted."""


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch):
    def stop(*arguments, **settings):
        raise Compiled

    stop.lower = stop
    monkeypatch.setattr(rollouts, "rollout", stop)
    monkeypatch.setattr(state_sft, "rollout", stop)
    for recipe in (policy_grpo.PolicyGrpo, tracerl.TraceRl, sft.Sft, joint.Joint):
        monkeypatch.setattr(recipe, "init", stop)
    for command in ("enable_cache", "choose_flags"):
        monkeypatch.setattr(compilation, command, lambda *_: None)
    monkeypatch.setattr(generate.Generator, "generate", stop)
    monkeypatch.setattr(serve.Service, "run", stop)
    with contextlib.suppress(ImportError):  # It would close the stream that absl logs to.
        monkeypatch.setattr(serve.require().Config, "configure_logging", lambda self: None)
    monkeypatch.setattr(harness, "require", stop)
    monkeypatch.setattr(calibrate_command, "count_forwards", stop)
    monkeypatch.setattr(measure, "rollout", stop)
    monkeypatch.setattr(bench.speed, "measure_speed", stop)
    monkeypatch.setattr(distributed, "_join", stop)
    monkeypatch.setattr(bench.hardware, "measure_matmul_peak", stop)
    monkeypatch.setattr(bench.breakdown, "measure_breakdown", stop)
    monkeypatch.setattr(denoisers, "save_orbax", stop)
    monkeypatch.setattr(denoisers, "save_pretrained", stop)
    # The process has its devices already.
    monkeypatch.setattr(plan, "stand_in", lambda text, real: (accelerators.parse(text)[0], None))
    monkeypatch.setattr(jax.stages.Lowered, "compile", stop)


def edges(each: Setting) -> list:
    """The choices of a setting, its bounds and their neighbours, and what is far outside."""
    bounds = [b for b in (each.ge, each.gt, each.le, each.lt) if b is not None]
    near = [each.kind(b + d) for b in bounds for d in (-1, 0, 1)] if each.kind is not str else []
    found = {bool: (), int: _EDGES, float: _FLOATS, str: _TEXTS}[each.kind]
    found = [*found, *near, *each.choices]
    return [(value,) for value in found] if each.is_tuple else found


def values(each: Setting) -> st.SearchStrategy:
    """Values of all kinds, mostly of the type of the setting."""
    own = {bool: st.booleans(), int: st.integers(), float: st.floats(), str: st.text(max_size=20)}[
        each.kind
    ]
    typed = st.lists(own, max_size=3).map(tuple) if each.is_tuple else own
    known = st.sampled_from(edges(each) or [True, False])
    return st.one_of(typed, known, known, st.sampled_from(_ANYTHING))


@st.composite
def changes(draw):
    recipe = draw(st.sampled_from(RECIPES))
    settings = [s for s in declared(recipes.defaults(recipe)) if s.key not in LEFT_OUT]
    each = draw(st.sampled_from(settings))
    return recipe, each.key, draw(values(each))


@contextlib.contextmanager
def deadline(seconds):
    """Ends what takes longer by the processor time of this thread: others may be busy."""
    began, is_over = time.thread_time(), False

    def stop(*_):
        if is_over:  # A signal may arrive late.
            return
        if (left := began + seconds - time.thread_time()) <= 0:
            raise TimeoutError(f"more than {seconds} s")
        signal.setitimer(signal.ITIMER_PROF, left + 0.01)

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        # The handler stays: without it, a signal that arrives late ends the process.
        is_over = True
        signal.setitimer(signal.ITIMER_PROF, 0)


def attempt(tiny_config, workdir, recipe, key, value):
    config = recipes.config(recipe) if recipe == "curriculum" else tiny_config(recipe)
    if key.startswith("eval."):
        config.eval.after_training = True
    *groups, name = key.split(".")
    group = config
    for each in groups:
        group = group[each]
    with group.ignore_type(), group.unlocked():
        group[name] = value
    with deadline(SECONDS), contextlib.suppress(Compiled):
        try:
            train.train(config, workdir)
        except (ValueError, OSError, ImportError) as error:
            assert not isinstance(error, TimeoutError)
            # The full key of one that does not go with others; paths name themselves.
            named = {key, key.partition(".")[0], key.rpartition(".")[2], str(value)}
            assert isinstance(error, ConfigError) or any(n in str(error) for n in named), error


LINES = {
    "environments": "task.name=sudoku rollout.gen_length=8 rollout.block_length=4 model.remat=True",
    "eval.policies": "threshold:threshold=0.3|0.5@8,temperature=1.0",
    "eval.caches": "dual:refresh_every=4,extra_tokens=2",
    "eval.axes": "sampling.temperature=0|1",
    "eval.trained": "temperature=0|1",
    "eval.viewer": "threshold:threshold=0.5",
    "eval.shipped": "sudoku-*@16",
    "rollout.cache": "dual:refresh_every=4",
    "rollout.policy": "threshold:threshold=0.3",
    "task.name": "mixture:sudoku=1,arithmetic=2",
    "stages": "{file} train.steps=2 optimizer.lr=1e-3",
}
_PIECES = (
    "=",
    ":",
    "|",
    "@",
    ",",
    " ",
    "'",
    '"',
    "\\",
    "(",
    "[",
    "..",
    "-1",
    "nan",
    "1e999",
    "\x1b",
)
_WORDS = ("9" * 400, "é", "None", "True", "x", "0", "learned:", "model.path=", "recipe=curriculum")


def damaged_line(draw, line):
    """A line of settings in which a piece went, was doubled, or became another."""
    start = draw.randrange(len(line) + 1)
    end = min(len(line), start + draw.choice((0, 1, 1, 3, 10, len(line))))
    return line[:start] + draw.choice(("", line[start:end] * 2, *_PIECES, *_WORDS)) + line[end:]


def fuzz_lines(tiny_config, write_experiment, tmp_path, count):
    """Damaged lines of settings; those that are wrong in another way than by one message."""
    draw, wrong = random.Random(count), []
    file = write_experiment(tmp_path / "stage.py", "sft")
    known = {each: {s.key: s for s in declared(recipes.defaults(each))} for each in RECIPES}
    for number in range(count):
        key = draw.choice(list(LINES))
        line = damaged_line(draw, LINES[key].format(file=file))
        recipe = "curriculum"
        if key != "stages":
            recipe = draw.choice([each for each in RECIPES if key in known[each]])
        is_tuple = key == "stages" or known[recipe][key].is_tuple
        value = (line,) if is_tuple else line
        try:
            attempt(tiny_config, tmp_path / str(number), recipe, key, value)
        except (Exception, AssertionError) as error:
            wrong.append((recipe, key, line, repr(error)[:300]))
    return wrong


def fuzz(tiny_config, tmp_path, count):
    numbers = iter(range(10**6))

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 100,
        phases=[hypothesis.Phase.generate],  # A counterexample is short enough as it is.
    )
    @hypothesis.given(changes())
    def check(change):
        attempt(tiny_config, tmp_path / str(next(numbers)), *change)

    check()


def test_any_value(tiny_config, tmp_path):
    fuzz(tiny_config, tmp_path, 25)


def test_any_line(tiny_config, write_experiment, tmp_path):
    assert not fuzz_lines(tiny_config, write_experiment, tmp_path, 20)


@pytest.mark.slow
def test_many_lines(tiny_config, write_experiment, tmp_path):
    wrong = fuzz_lines(tiny_config, write_experiment, tmp_path, 300)
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.slow
def test_many_values(tiny_config, tmp_path):
    fuzz(tiny_config, tmp_path, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_at_its_edges(tiny_config, tmp_path, recipe):
    others = RECIPES[: RECIPES.index(recipe)]
    known = {each.key for other in others for each in declared(recipes.defaults(other))}
    tried, wrong = 0, []
    for each in declared(recipes.defaults(recipe)):
        if each.key in known or each.key in LEFT_OUT:
            continue
        for value in (*edges(each), *_ANYTHING):
            tried += 1
            try:
                attempt(tiny_config, tmp_path / str(tried), recipe, each.key, value)
            except (Exception, AssertionError) as error:
                wrong.append((each.key, value, repr(error)[:200]))
    print(f"{recipe}: {tried} values")
    assert not wrong


class Command:
    """A command of the package with arguments that run, by name."""

    def __init__(self, name, arguments):
        self.name, self.arguments = name, arguments
        self.module = importlib.import_module(f"jax_unmask.commands.{name}")
        self.is_absl = hasattr(self.module, "define_flags")

    def values(self):
        """Names of the flags with values to try, most of them wrong."""
        if self.is_absl:
            known = flags.FlagValues()
            self.module.define_flags(known)
            kinds = {"int": int, "float": float, "bool": bool}
            for name in known:
                if name not in ("config", "flagfile", "undefok") and len(name) > 1:
                    yield name, flag_values(kinds.get(known[name].flag_type(), str))
            return
        for action in self.module.parser()._actions:
            if action.option_strings and not isinstance(action, argparse._HelpAction):
                kind = action.type if action.type in (int, float) else str
                kind = int if action.type is command_line.seed else kind
                kind = bool if action.nargs == 0 else kind
                yield action.dest, [*flag_values(kind), *(action.choices or ())]

    def run(self, name, value, monkeypatch):
        """The fault in the way in which the command takes a value, or None."""
        flag = f"--{name}={value}" if value is not None else f"--{name}"
        given = [each for each in self.arguments if not each.startswith(f"--{name}=")] + [flag]
        written = io.StringIO()
        redirected = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(written)
        try:
            with redirected[0], redirected[1], deadline(SECONDS):
                values = flags.FlagValues()
                monkeypatch.setattr(flags, "FLAGS", values)
                if self.is_absl:
                    flags.DEFINE_integer("verbosity", 0, "As absl's.", flag_values=values)
                    if self.module is train:  # Its settings are tried by themselves.
                        monkeypatch.setattr(train, "train", measure.rollout)
                    self.module.define_flags(values)
                    self.module.main(command_line.parse_flags([self.name, *given]))
                else:
                    self.module.main(given)
        except Compiled:
            return None
        except SystemExit as stopped:
            said = stopped.code
            if said in (0, None):
                return None
            said = written.getvalue().strip() if said == 2 else str(said)
            if said.startswith("error: ") and "\n" not in said and "\x1b" not in said:
                named = {name, name.replace("_", ""), str(value), str(value)[:20]}
                return None if any(each in said for each in named) else f"{flag}: {said}"
            return f"{flag}: {said!r}"
        except BaseException as error:
            return f"{flag}: {error!r}"
        return None


def flag_values(kind):
    """Texts of values: of the type, at its edges, and others."""
    if kind is bool:
        return [None, "x", "true"]
    texts = [each[:200] for each in _TEXTS if "\x00" not in each]
    numbers = {int: _EDGES, float: _FLOATS}.get(kind, ())
    return [*texts, *(str(each)[:400] for each in numbers)]


@pytest.fixture(scope="session")
def commands(byte_model, tiny_model_dir, write_experiment, tmp_path_factory):
    """Every command with flags, with arguments that run."""
    directory = tmp_path_factory.mktemp("commands")
    file = write_experiment(directory / "experiment.py", eval__block_lengths=(16,))
    config = f"--config={file}"
    model = (f"--model={byte_model}", "--gen_length=8")
    return [
        Command("generate", [*model, "--prompt=abc"]),
        Command("serve", [*model, "--port=0"]),
        Command("bench", [*model, "--block_length=8", "--prompt_length=4", "--batch_sizes=1"]),
        Command("harness", [*model, "--tasks=x"]),
        Command("convert", [f"--source={tiny_model_dir}", f"--output={directory / 'converted'}"]),
        Command("plan", [config]),
        Command("calibrate", [config, "--policy=universal"]),
        Command("eval", [config, f"--workdir={directory / 'results'}"]),
        Command("train", [config, f"--workdir={directory / 'run'}"]),
    ]


def fuzz_flags(commands, monkeypatch, count):
    monkeypatch.chdir(commands[-1].arguments[-1].partition("=")[2].rpartition("/")[0])
    pairs = [(c, name, v) for c in commands for name, found in c.values() for v in found]
    pairs = random.Random(0).sample(pairs, count)
    wrong = []
    for command, name, value in pairs:
        if problem := command.run(name, value, monkeypatch):
            wrong.append(f"{command.name} {problem}"[:400])
    print(f"{len(pairs)} values of flags")
    return wrong


def test_any_flag(commands, monkeypatch):
    assert not fuzz_flags(commands, monkeypatch, 12)


@pytest.mark.slow
def test_many_flags(commands, monkeypatch):
    wrong = fuzz_flags(commands, monkeypatch, 511)
    assert not wrong, "\n".join(wrong)
