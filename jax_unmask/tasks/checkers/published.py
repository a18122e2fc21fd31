r"""The parsers that the published unmasking-policy results were made with, faults included.

They read only the first non-empty box (GSM8K), stop at its first closing brace, cut numbers at a
thousands comma, and take a whole response for the answer where there is no box (MATH). Use them to
compare with published numbers; `answers` is the better reader. Behaviour of apple/ml-rl-dllm's
first public commit (arXiv 2512.09106), checked against golden records.
"""

import re
from typing import Any

_BOX = re.compile(r"\\boxed{(.*?)}")
_NUMBER = re.compile(r"-?\d+\.?\d*")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_EVALUATION_GOLD = re.compile(r"####\s*\$?([\d,]+(?:\.\d+)?)")


def check_style(task: Any) -> None:
    """Raises ValueError if a task has `reference_compat` without the style that it is for."""
    if task.reference_compat and task.style != "chat":
        raise ValueError(f"reference_compat=True needs style='chat', not {task.style!r}")


def last_tagged(text: str) -> str | None:
    """Content of the last closed answer tag, or None."""
    found = _TAG.findall(text)
    return found[-1].strip() if found else None


def _float_or_number(text: str, index: int) -> float | None:
    try:
        return float(text)
    except ValueError:
        numbers = _NUMBER.findall(text)
        return float(numbers[index]) if numbers else None


def gsm8k_answer(text: str) -> float | None:
    """First box with a number in it, else the last number of the first answer tag, else None."""
    for box in _BOX.findall(text):
        value = _float_or_number(box.strip(), 0)
        if value is not None:
            return value
    tag = _TAG.search(text)
    return _float_or_number(tag[1].strip(), -1) if tag and tag[1].strip() else None


def gsm8k_gold(solution: str) -> float:
    """Training's right answer: the number between the first `####` and the next.

    Raises:
        ValueError: if there is none once spaces and commas are removed.
    """
    text = solution.partition("####")[2].partition("####")[0]
    return float(text.replace(" ", "").replace(",", ""))


def gsm8k_gold_for_evaluation(solution: str) -> float | None:
    """Right answer as the published evaluation reads it, without minus signs."""
    match = _EVALUATION_GOLD.search(solution)
    return float(match[1].replace(",", "")) if match else None


def last_boxed_only_string(text: str) -> str | None:
    r"""The last box with its command; the whole text if there is no box, None if it never closes.

    Any `\boxed` that is followed by a space wins over all others and runs to the next dollar sign.
    """
    if "\\boxed " in text:
        return "\\boxed " + text.split("\\boxed ")[-1].split("$")[0]
    start = text.rfind("\\boxed")
    if start < 0:
        start = text.rfind("\\fbox")
    if start < 0:
        return text
    depth = 0
    for end in range(start, len(text)):
        if text[end] == "{":
            depth += 1
        elif text[end] == "}":
            depth -= 1
            if depth == 0:
                return text[start : end + 1]
    return None


def remove_boxed(text: str) -> str:
    r"""Content of a string that is one box; other strings come back as they are.

    Raises:
        ValueError: for a `\boxed` followed by a space that is not at the start.
    """
    if "\\boxed " in text:
        if not text.startswith("\\boxed "):
            raise ValueError(f"{text!r} does not start with its box")
        return text.removeprefix("\\boxed ")
    if text.startswith("\\boxed{") and text.endswith("}"):
        return text[len("\\boxed{") : -1]
    return text


def math_answer(text: str) -> str | None:
    """Training's answer of a MATH response: last box, else the whole text; None if unbalanced."""
    box = last_boxed_only_string(text)
    return None if box is None else remove_boxed(box)


def math_answer_for_evaluation(text: str) -> str | None:
    """Evaluation's answer: as in training, but what is empty falls back on the answer tag."""
    answer = math_answer(text)
    tag = None if answer else _TAG.search(text)
    return tag[1].strip() if tag else answer
