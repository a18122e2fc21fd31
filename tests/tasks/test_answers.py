import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_unmask.tasks.checkers import answers, latex, published

# Text made of the pieces that the parsers look for, so that they meet in every order.
MARKS = ["\\boxed", "\\boxed{", "\\boxed ", "\\fbox{", "<answer>", "</answer>", "####"]
MATHS = ["\\frac", "\\sqrt", "\\text{ ", "\\", "{", "}", "$", "=", "/", "x", "-", "."]
NUMBERS = ["0", "1", "1,000", "1e999", "nan", "\u0663", " ", "\n"]
PIECES = st.lists(st.sampled_from(MARKS + MATHS + NUMBERS), max_size=30).map("".join)
TEXTS = st.one_of(st.text(max_size=80), PIECES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{5} then \\boxed{6}", ["5", "6"]),
        ("\\boxed{\\frac{1}{2}}", ["\\frac{1}{2}"]),
        ("\\boxed{12\n}", ["12\n"]),
        ("\\boxed{\\{1, 2\\}}", ["\\{1, 2\\}"]),
        ("\\boxed{\\boxed{7}}", ["\\boxed{7}", "7"]),
        ("\\boxed{1} \\boxed{2", ["1"]),
        ("\\boxed {3} and \\fbox{4}", ["3", "4"]),
        ("$\\boxed 7$ done", ["7"]),
        ("} \\boxed{8}", ["8"]),
        ("{ \\boxed{9}", ["9"]),
        ("no box", []),
    ],
)
def test_boxes(text, expected):
    assert answers.boxes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234", 1234),
        ("1{,}234.5", 1234.5),
        ("10\\,080", 10080),
        ("10,\\!080", 10080),
        ("10 000", 10000),
        ("1,234,567", 1234567),
        ("-7", -7),
        ("\u22127", -7),
        ("-\\$5", -5),
        ("\\$-5", -5),
        ("$42", 42),
        (".25", 0.25),
        ("1e3", 1000),
        ("12\\%", 12),
        ("5\\text{ cm}", 5),
        ("x = 4", 4),
        ("3 + 4 = 7", 7),
        ("10-3", 7),
        ("\\frac{3}{4}", 0.75),
        ("-\\dfrac{36}{2}", -18),
        ("2\\frac{1}{2}", 2.5),
        ("2 1/2", 2.5),
        ("-2 1/2", -2.5),
        ("1\u202f000", 1000),
        ("1\u00a0000", 1000),
        ("12\u2009500", 12500),
        ("1\\text{,}000", 1000),
        ("\u20135", -5),
        ("- 5", -5),
        ("1/2 cup", 0.5),
        ("3/4 \\text{ of it}", 0.75),
        ("\\frac12 \\text{ cup}", 0.5),
        ("5 \\times 10^3", 5000),
        ("2^{3}", 8),
        ("3 + 4", 7),
        ("\\text{18}", 18),
        ("18 \\text{ cm}^2", 18),
        ("\\$5 per hour", 5),
        ("2:00 pm", 2),
        ("007", 7),
        ("\\boxed{120\n", 120),
        ("63\\text{ minutes><|eot_id|>", 63),
        # Not understood, or not one number.
        ("5 or 6", None),
        ("86, 42", None),
        ("20 minutes 5 seconds", None),
        ("7:30", None),
        ("5x", None),
        ("2\\sqrt{3}", None),
        ("9^{9^9}", None),
        ("1" * 5000, None),
        ("21/2", 10.5),
        ("1/0", None),
        ("\\frac{2\\pi}{3}", None),
        ("1e999", None),
        ("inf", None),
        ("nan", None),
        ("twelve", None),
        ("", None),
    ],
)
def test_number(text, expected):
    assert answers.number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{5}, no: \\boxed{1,006}", 1006),
        ("\\boxed{9} in the form \\boxed{...}", 9),
        ("\\boxed{9} and \\boxed{}", 9),
        ("<answer>12 apples and 30 pears</answer>", None),
        ("<answer>The loss is -5 dollars</answer>", -5),
        ("<answer>2½ cups</answer> or \\boxed{–½}", -0.5),
        ("<answer>4</answer> wait <answer>\n1,050\n", 1050),
        ("<answer>5</answer><answer></answer>", 5),
        ("<answer>5</answer> in the form <answer>...</answer>", 5),
        ("<answer>\\boxed{5}</answer> in the form \\boxed{\\ldots}", 5),
        ("<answer>5 or 6</answer>", None),
        ("\\boxed{18} no, \\boxed{\\text{unknown}}", None),
        ("\\boxed{3} <answer>4</answer>", 4),
        ("<answer>4</answer> \\boxed{3}", 3),
        ("#### 5\n#### ", 5),
        ("####1 \\boxed{0}", 0),
        ("so far 7\n#### 1,200\nand 9", 1200),
        ("#### -3", -3),
        ("the total is 18", None),
        ("<answer></answer>", None),
    ],
)
def test_final_number(text, expected):
    assert answers.final_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{1} \\boxed{ 2 }", "2"),
        ("\\boxed{1} \\boxed{ }", "1"),
        ("\\boxed{\u20131\u202f000}", "-1 000"),
        ("\\boxed{1} <answer>$x$</answer> <answer>...</answer>", "$x$"),
        ("<answer> x+1 </answer>", "x+1"),
        ("\\boxed{}", None),
        ("x+1", None),
    ],
)
def test_final_expression(text, expected):
    assert answers.final_expression(text) == expected


@settings(deadline=None, max_examples=30)
@given(TEXTS)
def test_readers_take_any_text(text):
    for read in (answers.final_number, answers.final_expression, answers.number, answers.boxes):
        read(text)
    published.gsm8k_answer(text)
    published.math_answer_for_evaluation(text)


@settings(deadline=None, max_examples=30)
@given(TEXTS, TEXTS)
def test_equivalence_takes_any_text_and_is_symmetric(first, second):
    for compat in (False, True):
        assert latex.is_equiv(first, second, reference_compat=compat) == latex.is_equiv(
            second, first, reference_compat=compat
        )
    assert latex.is_equiv(first, first) == bool(first.strip())


@given(
    st.integers(-(10**9), 10**9), TEXTS.filter(lambda text: "\\" not in text and "{" not in text)
)
def test_a_closing_box_decides(value, before):
    assert answers.final_number(f"{before} \\boxed{{{value:,}}}") == value


@given(st.integers(1, 300))
def test_reading_is_linear_in_the_nesting(depth):
    assert len(answers.boxes("\\boxed{" * depth + "}" * depth)) == depth
