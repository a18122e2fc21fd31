import pathlib

import pytest

from jax_unmask.tasks.gsm8k import Gsm8k, gold

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples" / "gsm8k"
EXAMPLE = {"question": "How many?", "answer": "It is 2*9 = <<2*9=18>>18.\n#### 18"}


def test_training_prompt():
    (turn,) = Gsm8k(SAMPLES).prompt(EXAMPLE)
    assert turn == {
        "role": "user",
        "content": "\nRespond in the following format:\n<reasoning>\n...\n</reasoning>\n"
        "<answer>\n...\n</answer>\n\n\nHow many?",
    }


def test_evaluation_prompt_opens_the_response():
    assert Gsm8k(SAMPLES, prompt_style="evaluation").prompt(EXAMPLE) == [
        {
            "role": "user",
            "content": "You are a math expert. You will be given a question to solve. Solve it "
            "step by step. Wrap the final answer in a \\boxed{}.\nRespond in the following format:"
            "\n<reasoning>\nYour reasoning here\n</reasoning>\n<answer>\n\\boxed{...}\n</answer>"
            "\n\nHow many?",
        },
        {"role": "assistant", "content": "<reasoning>"},
    ]


@pytest.mark.parametrize(
    ("style", "target"),
    [
        ("training", "<reasoning>\nIt is 2*9 = 18.\n</reasoning>\n<answer>\n18\n</answer>"),
        ("evaluation", "\nIt is 2*9 = 18.\n</reasoning>\n<answer>\n\\boxed{18}\n</answer>"),
    ],
)
def test_targets_are_in_the_format_asked_for(style, target):
    task = Gsm8k(SAMPLES, prompt_style=style)
    assert task.target(EXAMPLE) == target
    assert task.check(EXAMPLE, target) == 1


@pytest.mark.parametrize(
    ("solution", "value"),
    [("#### 18", 18), ("#### 1,234", 1234), ("#### -10", -10), ("a #### 5\n#### $6.50", 6.5)],
)
def test_right_answers(solution, value):
    assert gold({"answer": solution}) == value


@pytest.mark.parametrize("solution", ["18", "#### ", "#### none"])
def test_solutions_without_a_right_answer(solution):
    with pytest.raises(ValueError, match=f"'answer' .*'#### NUMBER'.*'{solution}'"):
        gold({"answer": solution})


@pytest.mark.parametrize(
    ("answer", "response", "score", "published"),
    [
        ("18", "\\boxed{18}", 1, 1),
        ("18", "\\boxed{17} no, \\boxed{18}", 1, 0),
        ("17", "\\boxed{17} no, \\boxed{18}", 0, 1),
        ("1,000", "\\boxed{1,000}", 1, 0),
        ("1,000", "<answer>1,000</answer>", 1, 0),
        ("-7", "\\boxed{-7}", 1, 1),
        ("18", "\\boxed{18\n}", 1, 0),
        ("2", "\\boxed{\\frac{2}{3}}", 0, 1),
        ("18", "the total is 18", 0, 0),
        ("0.1", "\\boxed{0.10000001}", 1, 1),
        ("0.1", "\\boxed{0.1001}", 0, 0),
        ("5", "\\boxed{nan}", 0, 0),
    ],
)
def test_checks_and_where_the_published_parser_differs(answer, response, score, published):
    example = {"question": "?", "answer": f"#### {answer}"}
    assert Gsm8k(SAMPLES).check(example, response) == score
    assert Gsm8k(SAMPLES, reference_compat=True).check(example, response) == published


@pytest.mark.parametrize(
    ("right", "response", "score"),
    [
        ("-7", "\\boxed{-7}", 0),
        ("7", "\\boxed{7}", 1),
        ("7", "\\boxed{7.0000001}", 0),
        ("-7", "", 0),
    ],
)
def test_published_evaluation_knows_no_negative_answer_and_no_tolerance(right, response, score):
    task = Gsm8k(SAMPLES, prompt_style="evaluation", reference_compat=True)
    assert task.check({"answer": f"#### {right}"}, response) == score


def test_bad_settings():
    with pytest.raises(ValueError, match="prompt_style = 'eval'"):
        Gsm8k(SAMPLES, prompt_style="eval")
    with pytest.raises(ValueError, match=r"path=.*data_dir='somewhere'"):
        Gsm8k(SAMPLES, data_dir="somewhere")
    with pytest.raises(ValueError, match="shorter"):
        Gsm8k(SAMPLES).check_batch([EXAMPLE], [])
