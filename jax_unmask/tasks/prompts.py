"""Prompts of the published mathematics experiments, word for word.

A prompt is a list of chat messages. If the last message is the assistant's, it is the beginning of
the response: a tokenizer opens the assistant's turn after the messages before it and appends that
text as it is. The model's response, and so what a task checks, starts after it.
"""

from typing import Literal

PromptStyle = Literal["training", "evaluation", "step_by_step", "boxed", "thinking"]
PROMPT_STYLES = (
    "Wording: training and evaluation of the unmasking paper (evaluation shows the box and opens "
    "the response), or TraceRL's for training and evaluation alike: step_by_step (SDAR, TraDo), "
    "boxed (LLaDA, Dream), thinking (boxed, and <think> opens the response)."
)
Messages = list[dict[str, str]]

# From d1 (arXiv 2504.12216); the line ends at both ends are part of it.
TRAINING_FORMAT = """
Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>
"""
_EXPERT = (
    "You are a math expert. You will be given a question to solve. Solve it step by step. "
    "Wrap the final answer in a \\boxed{}."
)
_EVALUATION_FORMAT = f"""{_EXPERT}
Respond in the following format:
<reasoning>
Your reasoning here
</reasoning>
<answer>
\\boxed{{...}}
</answer>"""
_OPENED = "<reasoning>"
# TraceRL's (arXiv 2509.06949), for mathematics of any kind.
_TRACERL = {
    "step_by_step": "{problem}\nPlease reason step by step, and put your final answer within "
    "\\boxed{{}}.",
    "boxed": "You need to put your final answer in \\boxed{{}}. This is the problem:\n{problem}",
}
THINK = "<think>"
# The published prompts up to the problem. MATH's has a stray quotation mark and a line end.
_HEADS = {
    ("gsm8k", "training"): f"{TRAINING_FORMAT}\n\n",
    ("gsm8k", "evaluation"): f"{_EVALUATION_FORMAT}\n\n",
    ("math", "training"): f"{TRAINING_FORMAT}\n\n{_EXPERT} \n\n",
    ("math", "evaluation"): f'{_EVALUATION_FORMAT}"\n\n\n',
}


def messages(problem: str, style: PromptStyle, data: Literal["gsm8k", "math"]) -> Messages:
    """The messages of GSM8K or MATH."""
    opened = {"thinking": THINK, "evaluation": _OPENED}.get(style, "")
    if (head := _HEADS.get((data, style))) is not None:
        return turns(head + problem, opened)
    return turns(_TRACERL.get(style, _TRACERL["boxed"]).format(problem=problem), opened)


def worked_response(reasoning: str, answer: str, style: PromptStyle) -> str:
    """A response in the format that the prompt of the same style asks for."""
    if style == "thinking":
        return f"\n{reasoning}\n</think>\n\n\\boxed{{{answer}}}"
    if style in _TRACERL:
        return f"{reasoning}\n\n\\boxed{{{answer}}}"
    if style == "training":
        return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"
    return f"\n{reasoning}\n</reasoning>\n<answer>\n\\boxed{{{answer}}}\n</answer>"


def turns(request: str, opened: str = "") -> Messages:
    """The user's turn, and the beginning of the assistant's if there is one."""
    answer = [{"role": "assistant", "content": opened}] if opened else []
    return [{"role": "user", "content": request}, *answer]
