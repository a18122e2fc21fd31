import pathlib
import runpy
import shutil
import sys
from collections import Counter

import pytest

import hub_cache
from jax_unmask import recipes
from jax_unmask.environment.bundle import load_task
from jax_unmask.evaluation import axes
from jax_unmask.settings import ConfigError
from jax_unmask.tasks import decontamination
from jax_unmask.tasks.difficulty import Band
from jax_unmask.tasks.gsm8k import Gsm8k
from jax_unmask.tasks.kodcode import KodCode
from jax_unmask.tasks.math import Math
from jax_unmask.tasks.mixture import Mixture

ROOT = pathlib.Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "fixtures" / "samples"
MIXED = {"gsm8k": Gsm8k(SAMPLES / "gsm8k"), "math": Math(SAMPLES / "math")}


def shares(weights, split="train"):
    source = Mixture(MIXED, weights).source(split)
    return Counter(source[k]["task"] for k in range(len(source)))


def test_weights_are_shares_of_a_pass_of_the_same_length():
    whole = shares(None)
    total = sum(whole.values())
    weighted = shares({"gsm8k": 3, "math": 1})
    assert abs(sum(weighted.values()) - total) <= 1
    assert abs(weighted["gsm8k"] - 0.75 * total) <= 1
    assert shares({"math": 1}) == {"math": total}
    assert shares({"gsm8k": 3, "math": 1}, "test") == shares(None, "test")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"gsm8k": 0, "math": 0}, "sum to 0"),
        ({"gsm8k": -1, "math": 2}, r"weights\['gsm8k'\]=-1 must be"),
        ({"gsm8k": float("nan")}, r"weights\['gsm8k'\]=nan "),
        ({"gsm": 1}, r"are of \['gsm'\] too"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(MIXED, weights)


@pytest.mark.usefixtures("needs_sandbox")
def test_a_mixture_checks_slow_and_fast_tasks_together():
    mixture = Mixture({**MIXED, "kodcode": KodCode(SAMPLES / "kodcode")})
    source = mixture.source("train")
    examples = [source[0], source[len(source) - 1], source[0], source[len(source) - 1]]
    right = [mixture.target(example) for example in examples]
    finish = mixture.start_checks(examples, [right[0], right[1], right[1], right[0]])
    assert finish() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("band", "value", "inside"),
    [
        ("level:3..5", "Level 3", True),
        ("level:3..5", "Level 2", False),
        ("level:3..5", "Level ?", False),
        ("level:..0.5", 0.333, True),
        ("level:0.5..", 0.333, False),
        ("level:Easy|medium", "easy ", True),
        ("level:Easy|medium", "Hard", False),
    ],
)
def test_bands(band, value, inside):
    assert Band.parse(band).holds({"level": value}) == inside


@pytest.mark.parametrize("text", ["level", "level:", ":3..5", "level:a..b", "level:5..3"])
def test_bad_bands(text):
    with pytest.raises(ValueError, match=f"difficulty='{text}'"):
        Band.parse(text)


def test_bands_of_a_task_bind_training_only(tmp_path):
    line = '{"problem": "?", "solution": "\\\\boxed{1}", "level": "Level %d"}\n'
    for name in ("train", "test"):
        text = "".join(line % (k % 5 + 1) for k in range(60))
        (tmp_path / f"{name}.jsonl").write_text(text)
    task = Math(tmp_path, difficulty="level:4..5")
    train = task.source("train")
    assert {train[k]["level"] for k in range(len(train))} == {"Level 4", "Level 5"}
    assert len(task.source("test")) == 60
    with pytest.raises(ValueError, match=r"level.* difficulty band"):
        Math(tmp_path, difficulty="level:9..").source("train")
    with pytest.raises(ValueError, match="field 'rate'"):
        KodCode(SAMPLES / "kodcode", difficulty="rate:0..1").source("train")


LONG = "A train leaves the station at noon and drives 60 miles per hour for three whole hours."


def test_overlap_exact_and_in_part():
    train = [LONG.upper(), f"Well: {LONG} How far?", "Something else entirely.", "What is $7$?", ""]
    test = [
        LONG,
        "What is 7?",
        "Another long text that nobody has seen in any training set so far.",
    ]
    found = decontamination.overlap(train, test)
    assert found.exact == [(0, 0), (3, 1)]
    assert found.ngram == [(0, 0), (1, 0), (3, 1)]
    assert found.contaminated() == [0, 1, 3]
    assert "5 training and 3 test problems: 2 exact pairs, 3 pairs with 13" in found.summary()
    assert decontamination.overlap(train, test, n=40).ngram == [(0, 0), (1, 0), (3, 1)]
    assert decontamination.overlap([LONG], [LONG.replace("noon", "six")]).ngram == []
    assert decontamination.overlap([LONG], [LONG.replace("noon", "six")], n=5).ngram == [(0, 0)]
    with pytest.raises(ValueError, match="n=0 must be"):
        decontamination.overlap(train, test, n=0)


def test_report(capsys):
    math = f"math:{SAMPLES / 'math'}"
    decontamination.main(["--train", math, "--test", math, "--test", f"gsm8k:{SAMPLES / 'gsm8k'}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{math} in {math}: 17 training and")
    with pytest.raises(SystemExit):
        decontamination.main(["--train", "sudoku_puzzles", "--test", math])
    assert "'sudoku_puzzles'" in capsys.readouterr().err


def config(**settings):
    made = recipes.config("policy_grpo")
    made.task.update(settings)
    return made


def test_settings_of_tasks_in_configs():
    task = load_task(config(name="countdown", settings=("numbers=4", "style=chat")))
    assert len(task.source("train")[0]["numbers"]) == 4
    assert isinstance(task.prompt(task.source("train")[0]), list)
    mixed = load_task(
        config(
            name="mixture",
            path=str(SAMPLES),
            mixture=("math=1", "kodcode=3", "countdown=2"),
            settings=("math.equivalence=symbolic", "countdown.numbers=5"),
        )
    )
    assert mixed.name == "math_kodcode_countdown"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "countdown", "settings": ("number=4",)}, r"task.settings = 'number=4'.* numbers"),
        ({"name": "countdown", "settings": ("numbers=6",)}, "numbers.*6"),
        ({"name": "sudoku_puzzles"}, "task.path = None"),
        ({"name": "mixture", "path": "x", "mixture": ("gsm",)}, r"task.mixture = 'gsm'.* gsm8k"),
        ({"name": "mixture", "path": "x", "mixture": ("math=a",)}, "task.mixture = 'math=a'"),
        (
            {"name": "mixture", "path": "x", "mixture": ("math=1", "gsm8k")},
            r"task\.mixture = \('math=1', 'gsm8k'",
        ),
        ({"name": "mixture", "path": "x", "mixture": ("math=0",)}, "sum to 0"),
        (
            {"name": "mixture", "path": "x", "settings": ("mth.difficulty=level:1..2",)},
            r"task\.settings = 'mth\.difficulty=level:1\.\.2'.* math",
        ),
    ],
)
def test_bad_settings_in_configs(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_task(config(**settings))


def test_the_published_mixture_from_a_filled_cache(tmp_path, monkeypatch):
    made = runpy.run_path(str(ROOT / "configs" / "gsm8k_math.py"))["get_config"]()
    hub_cache.use(monkeypatch, tmp_path)
    for name, folder in (("openai/gsm8k", "main"), ("EleutherAI/hendrycks_math", "algebra")):
        files = SAMPLES / ("gsm8k" if folder == "main" else "math")
        shutil.copytree(files, hub_cache.folder(tmp_path, name) / folder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # It would use the home.
    source = load_task(recipes.read(made)).source("train")
    assert Counter(source[k]["task"] for k in range(len(source))) == {"gsm8k": 30, "math": 17}
    # Evaluated task by task: the first problems of both together would be those of one.
    names = [each.config.task.name for each in axes.combinations(made)]
    assert names == ["gsm8k", "math500"]
