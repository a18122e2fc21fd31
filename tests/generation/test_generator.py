"""`jax_unmask.Generator`: one call from Python."""

import subprocess
import sys

import numpy as np
import pytest

from jax_unmask import Generator
from jax_unmask.rollout import rollout

PUZZLES = ["1...2...3...4...=", "12..", "1...2...3...4..3=", ".2..2...3...4...="]


@pytest.fixture(scope="module")
def generator():
    return Generator.from_pretrained("sudoku", policy="threshold:threshold=0.9", block_length=16)


def test_importing_it_imports_no_jax():
    found = "import sys, jax_unmask; jax_unmask.Generator; print('jax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_prompt_gets_the_same_alone_and_among_others(generator):
    together = generator.generate(PUZZLES)
    assert [each.prompt for each in together] == PUZZLES
    for turn, (puzzle, answer) in enumerate(zip(PUZZLES, together, strict=True)):
        (alone,) = generator.generate([puzzle], turn=turn)
        assert (alone.text, alone.nfe) == (answer.text, answer.nfe)
        np.testing.assert_array_equal(alone.trajectory.step_map, answer.trajectory.step_map)
    assert len({answer.nfe for answer in together}) > 1


def test_other_settings_and_numbers_of_prompts_compile_nothing(generator):
    generator.generate(PUZZLES[:3])
    programs = rollout._cache_size()
    fast = generator.generate(PUZZLES, threshold=0.0, seed=5)
    assert {answer.nfe for answer in fast} == {1}
    assert repr(fast[0]) == f"Answer({fast[0].text!r}, nfe=1)"
    shown = "Trajectory(prompts=(1, 17), tokens=(1, 16), slots=4, records=False)"
    assert repr(fast[0].trajectory) == shown
    assert fast[0].policy == "threshold:threshold=0.9,threshold=0.0"
    assert rollout._cache_size() == programs


def test_stream_yields_every_step_and_ends_with_the_answer(generator):
    (answer,) = generator.generate(PUZZLES[:1])
    steps = list(generator.stream(PUZZLES[0]))
    assert [step.number for step in steps] == list(range(1, answer.nfe + 1))
    assert steps[-1].text == answer.text
    assert str(steps[0]).count("_") == sum(step < 0 for step in steps[0].step_map) > 0
    left_early = generator.stream(PUZZLES[0])
    next(left_early)
    left_early.close()
    assert [str(step) for step in generator.stream(PUZZLES[0])] == [str(step) for step in steps]


def test_nfe_is_steps_for_rules_that_have_them():
    rule = Generator.from_pretrained("sudoku", policy="top_confidence", block_length=16)
    assert [answer.nfe for answer in rule.generate(PUZZLES[:2], nfe=8)] == [8, 8]
    with pytest.raises(ValueError, match=r"xyz = 0: .*known: .*steps.*, nfe\."):
        rule.generate(PUZZLES[:1], xyz=0)
    with pytest.raises(ValueError, match=r"nfe = 0: .*multiple"):
        rule.generate(PUZZLES[:1], nfe=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nfe": 8}, "nfe = 8: threshold takes"),
        ({"treshold": 0.5}, "mean threshold"),
        ({"x": 0.5}, "x = 0.5: .*known: threshold"),
        ({"threshold": 2.0}, "threshold = 2.0"),
    ],
)
def test_says_what_is_wrong(generator, settings, message):
    with pytest.raises(ValueError, match=message):
        generator.generate(PUZZLES[:1], **settings)


def test_notebooks_show_the_viewer(generator):
    answers = generator.generate(PUZZLES[:2])
    for shown, count in ((answers, 2), (answers[0], 1)):
        page = shown._repr_html_()
        assert page.startswith("<iframe srcdoc=")
        assert page.count("&quot;step_map&quot;") == count
    (recorded,) = generator.generate(PUZZLES[:1], record=True)
    assert "&quot;candidates&quot;" in recorded._repr_html_()


def test_what_is_wrong_shows_before_the_weights_are_read(tmp_path):
    with pytest.raises(ValueError, match="block_length"):
        Generator.from_pretrained(str(tmp_path), gen_length=10, block_length=4)
    with pytest.raises(ValueError, match="mean threshold"):
        Generator.from_pretrained(str(tmp_path), policy="treshold")
