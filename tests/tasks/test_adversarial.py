"""Wrong, truncated and adversarial answers: 200 and more, none of which may score."""

import pathlib

import pytest

from jax_unmask.tasks.competitions import Math500
from jax_unmask.tasks.gsm8k import Gsm8k
from jax_unmask.tasks.humaneval import HumanEval
from jax_unmask.tasks.math import Math

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples"
ANSWERS = (
    "",
    " ",
    "\\boxed{}",
    "\\boxed{",
    "\\boxed",
    "\\boxed{ }",
    "<answer></answer>",
    "<answer>",
    "</answer>",
    "\\boxed{?}",
    "\\boxed{\\text{unknown}}",
    "\\boxed{y}",
    "\\boxed{9^{9^{9^9}}}",
    "\\boxed{(10!)!}",
    "\\boxed{10^{10^{7}}}",
    "\\boxed{\\infty}",
    "\\boxed{\\text{nan}}",
    "\\boxed{0/0}",
    "\\boxed{\\frac{1}{0}}",
    "\\boxed{1,2,3,4,5}",
    "\\boxed{\\{1,2,3,4,5\\}}",
    "\\boxed{\\{\\frac{1}{2}, 5\\}}",
    "\\boxed{(-\\infty,\\infty)}",
    "\\boxed{\\mathbb{R}}",
    "\\boxed{z=z}",
    "\\boxed{0=0}",
    "\\boxed{\\text{True}}",
    "\\boxed{5 \\text{ or } \\frac{1}{2} \\text{ or } (1,2)}",
    "\\boxed{5 = \\frac{1}{2}}",
    "\\boxed{\\frac{1}{2}, 5, (1,2), x^2+1}",
    "\\boxed{\\pm \\frac{1}{2}, \\pm 5}",
    "\\boxed{\\boxed{}}",
    "\\boxed{" + "(" * 2000 + ")" * 2000 + "}",
    "\\boxed{\\sum_{n=1}^{\\infty} n}",
    "\\boxed{\\int_0^1 e^{x^2} dx}",
    "\\boxed{\0}",
    "\\boxed{\U0001f600}",
    "\\boxed{5} no, \\boxed{\\frac{1}{2}} no, \\boxed{x^2+1} no, \\boxed{(1,2)} no, \\boxed{77}",
    "\\boxed{__import__('os').system('true')}",
    "\\boxed{-\\frac{1}{2}}",
    "\\boxed{5!}",
    "\\boxed{50}",
    "\\boxed{0.49999}",
    "\\boxed{0.5000001}",
    "\\boxed{4.9999999}",
    "\\boxed{\\neq 5}",
    "\\boxed{> \\frac{1}{2}}",
    "\\boxed{x \\leq 5}",
    "\\boxed{[1,2]}",
    "\\boxed{(2,1)}",
    "\\boxed{(1,2,3)}",
    "\\boxed{x^2-1}",
    "\\boxed{\\text{The answer is not here}}",
    "5 \\frac{1}{2} (1,2) x^2+1 east",
    "The answer is 5, \\frac{1}{2}, (1,2), x^2+1 or east.",
    "\\boxed{\\begin{pmatrix} 1 \\\\ 3 \\end{pmatrix}}",
)
ENDLESS = (
    "\\boxed{9^{9^{9^9}}}",
    "\\boxed{(10!)!}",
    "\\boxed{10^{10^{7}}}",
    "\\boxed{\\sum_{n=1}^{\\infty} n}",
    "\\boxed{\\int_0^1 e^{x^2} dx}",
)
RIGHT = ("5", "\\frac{1}{2}", "(1,2)", "x^2+1", "\\text{east}")


@pytest.mark.parametrize("equivalence", ["string", "symbolic"])
def test_mathematics(equivalence):
    # Algebra works on the endless ones until its time is over; so one right answer meets them.
    pairs = [(a, b) for a in RIGHT for b in ANSWERS if a == RIGHT[0] or b not in ENDLESS]
    assert len(pairs) >= 200
    task = Math("unused", equivalence=equivalence)
    examples = [{"problem": "", "solution": "", "answer": right} for right, _ in pairs]
    scores = task.check_batch(examples, [answer for _, answer in pairs])
    fooled = [pair for pair, score in zip(pairs, scores, strict=True) if score]
    assert not fooled, fooled


@pytest.mark.parametrize(
    ("right", "answer"),
    [
        ("\\frac{1}{2}", "\\frac{3}{6}"),
        ("\\frac{639}{40}", "15.975"),
        ("3, 5, 7", "7, 3, 5"),
        ("10,\\!080", "7! \\times 2!"),
        ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
        ("(1,2)", "(\\frac{2}{2}, 2)"),
        ("x^2+1", "1 + x^2"),
        ("-2 + 7i", "7i - 2"),
        ("\\text{(C)}", "C"),
        ("12", "12 \\text{ cm}"),
        ("\\$36", "36.00"),
        ("x \\in [-2,7]", "[-2, 7]"),
        ("14-i", "14.0-1.0i"),
        ("0.1", "\\frac{1}{10}"),
        ("1, -1", "\\pm 1"),
        ("3, 5, \\text{ and } 7", "3, 5, 7"),
        ("15\\text{ cm}^2", "15"),
    ],
)
def test_other_forms_of_the_right_answer(right, answer):
    task = Math500(SAMPLES / "competitions")
    assert task.check({"problem": "", "solution": "", "answer": right}, f"\\boxed{{{answer}}}") == 1


@pytest.mark.parametrize(
    ("right", "answer"),
    [
        ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"),
        ("\\frac{1}{2004!}", "\\frac{1}{2006!}"),
        ("\\frac{1}{3^{60}}", "0"),
        ("10^{30}", "10^{30}+1"),
        ("\\frac13", "0.333333333333"),
        ("1,1,2", "1,2"),
        ("5", "5 \\text{ or } 6"),
        ("5", "5 \\text{ and also } 7"),
        ("\\frac{3}{4}", "\\frac{3}{4} \\text{ or } \\frac{1}{4}"),
    ],
)
def test_answers_that_only_look_right(right, answer):
    example = {"problem": "", "solution": "", "answer": right}
    for equivalence in ("string", "symbolic"):
        assert Math("unused", equivalence=equivalence).check(example, f"\\boxed{{{answer}}}") == 0


def test_numbers():
    task = Gsm8k("unused")
    for answer in ANSWERS:
        for right in ("12", "-3", "1,000"):
            assert task.check({"answer": f"#### {right}"}, answer) == 0, (right, answer)


@pytest.mark.usefixtures("needs_sandbox")
def test_programs():
    task = HumanEval(SAMPLES / "humaneval")
    example = task.source("test")[1]
    assert task.check_batch([example] * len(ANSWERS), ANSWERS) == [0.0] * len(ANSWERS)
