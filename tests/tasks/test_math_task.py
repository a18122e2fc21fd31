import pathlib

import pytest

from jax_unmask.tasks.math import Math, gold

SAMPLES = pathlib.Path(__file__).parents[1] / "fixtures" / "samples" / "math"
EXAMPLE = {"problem": "Half of one?", "solution": "It is $\\boxed{\\frac{1}{2}}$."}


def test_training_prompt():
    (turn,) = Math(SAMPLES).prompt(EXAMPLE)
    assert turn == {
        "role": "user",
        "content": "\nRespond in the following format:\n<reasoning>\n...\n</reasoning>\n"
        "<answer>\n...\n</answer>\n\n\nYou are a math expert. You will be given a question to "
        "solve. Solve it step by step. Wrap the final answer in a \\boxed{}. \n\nHalf of one?",
    }


def test_evaluation_prompt_opens_the_response():
    assert Math(SAMPLES, prompt_style="evaluation").prompt(EXAMPLE) == [
        {
            "role": "user",
            "content": "You are a math expert. You will be given a question to solve. Solve it "
            "step by step. Wrap the final answer in a \\boxed{}.\nRespond in the following format:"
            '\n<reasoning>\nYour reasoning here\n</reasoning>\n<answer>\n\\boxed{...}\n</answer>"'
            "\n\n\nHalf of one?",
        },
        {"role": "assistant", "content": "<reasoning>"},
    ]


@pytest.mark.parametrize("style", ["training", "evaluation"])
@pytest.mark.parametrize("compat", [False, True])
def test_every_target_is_right(style, compat):
    task = Math(SAMPLES, prompt_style=style, reference_compat=compat)
    source = Math(SAMPLES).source("test")
    for example in (EXAMPLE, *(source[k] for k in range(len(source)))):
        assert task.check_batch([example] * 2, [task.target(example), "no answer"]) == [1, 0]


def test_problems_without_a_right_answer_are_left_out():
    ours = Math(SAMPLES, hold_out=15)
    published = Math(SAMPLES, reference_compat=True, hold_out=15)
    assert (len(ours.source("train")), len(ours.source("validation"))) == (15, 2)
    assert (len(published.source("train")), len(published.source("validation"))) == (16, 2)
    for split in ("train", "validation"):
        source = ours.source(split)
        assert all(gold(source[index]) for index in range(len(source)))


def test_another_test_file_and_its_answers():
    source = Math(SAMPLES, test_file="short").source("test")
    assert len(source) == 1
    assert gold(source[0]) == "\\frac{1}{2}"


@pytest.mark.parametrize(
    ("response", "score", "published"),
    [
        ("\\boxed{1/2}", 1, 1),
        ("\\boxed{3} no, \\boxed{\\dfrac12}", 1, 1),
        ("\\boxed{0.5}", 1, 1),
        ("\\boxed{\\frac{2}{4}}", 0, 0),
        ("<answer>1/2</answer>", 1, 0),
        ("1/2", 0, 1),
        ("\\boxed{1/2", 0, 0),
        ("\\boxed{1/2} in \\boxed{}", 1, 0),
    ],
)
def test_checks_and_where_the_published_parser_differs(response, score, published):
    assert Math(SAMPLES).check(EXAMPLE, response) == score
    assert Math(SAMPLES, reference_compat=True).check(EXAMPLE, response) == published


def test_a_missing_answer_equals_nothing():
    unsolved = {"problem": "?", "solution": "It is \\boxed{5"}
    assert Math(SAMPLES, reference_compat=True).check(unsolved, "\\boxed{6") == 1
    with pytest.raises(ValueError, match=r"'It is \\\\boxed\{5'"):
        Math(SAMPLES).check(unsolved, "\\boxed{6}")
    assert Math(SAMPLES).check(EXAMPLE, "\\boxed{6") == 0


def test_published_evaluation_reads_the_answer_tag():
    task = Math(SAMPLES, prompt_style="evaluation", reference_compat=True)
    assert task.check(EXAMPLE, "\\boxed{}<answer>1/2</answer>") == 1
    assert task.check({**EXAMPLE, "answer": "3"}, "\\boxed{3}") == 1


def test_bad_settings():
    for name in ("equivalence", "prompt_style"):
        with pytest.raises(ValueError, match=f"{name} = 'eval'"):
            Math(SAMPLES, **{name: "eval"})
    with pytest.raises(FileNotFoundError, match=r"math500\.jsonl"):
        Math(SAMPLES, test_file="math500").source("test")


def test_the_prompts_of_tracerl():
    """Word for word those of its public sampling scripts (arXiv 2509.06949)."""
    problem = EXAMPLE["problem"]
    steps = f"{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    boxed = f"You need to put your final answer in \\boxed{{}}. This is the problem:\n{problem}"
    assert Math(SAMPLES, prompt_style="step_by_step").prompt(EXAMPLE) == [
        {"role": "user", "content": steps}
    ]
    assert Math(SAMPLES, prompt_style="boxed").prompt(EXAMPLE) == [
        {"role": "user", "content": boxed}
    ]
    assert Math(SAMPLES, prompt_style="thinking").prompt(EXAMPLE) == [
        {"role": "user", "content": boxed},
        {"role": "assistant", "content": "<think>"},
    ]


@pytest.mark.parametrize("style", ["step_by_step", "boxed", "thinking"])
def test_targets_in_the_wording_of_tracerl_are_right(style):
    task = Math(SAMPLES, prompt_style=style)
    source = task.source("train")
    for example in (source[0], source[1]):
        target = task.target(example)
        assert task.check(example, target) == 1.0
        assert target.endswith("}") and target.count("</think>") == (style == "thinking")


def test_the_test_split_may_lie_elsewhere(tmp_path):
    file = tmp_path / "aside.jsonl"
    file.write_text('{"problem": "1 + 1?", "answer": "2", "solution": ""}\n')
    task = Math(SAMPLES, test_path=str(file))
    assert [each["problem"] for each in task.source("test")] == ["1 + 1?"]
    assert len(task.source("train")) > 1
    assert Math(test_path=str(file)).source("test")[0]["answer"] == "2"
