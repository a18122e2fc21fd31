"""A language model as judge, behind any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from jax_unmask.tasks.judges.base import Solution

logger = logging.getLogger(__name__)

_PROMPT = """\
A problem, its right answer, and a solution that is {verdict} as a whole. Judge one part of the \
solution: the part between <part> and </part>. Say whether this part, given what stands before it, \
is sound and helps towards the right answer. Mistakes of earlier parts are not this part's.

Problem:
{question}

Right answer:
{answer}

Solution:
{before}<part>{part}</part>{after}

End your reply with \\boxed{{1}} if the part is sound, or \\boxed{{-1}} if it is not."""

_BOXED = re.compile(r"\\boxed\{\s*([+-]?1)\s*\}")
# Answers that say "try again": too many requests, and trouble of the server's own.
_PASSING = frozenset({408, 409, 429, 500, 502, 503, 504})


class JudgeError(RuntimeError):
    """The server refuses the requests, so that no further one can succeed."""


class LanguageModelJudge:
    """Asks a model about each chunk, several times, and takes what all votes agree on.

    Where the votes of a chunk differ, or none can be read, the chunk gets the outcome of the whole
    solution: 1 or -1 (arXiv 2509.06949, appendix; its public code shows the judge everything up to
    the end of the chunk and calls that an excerpt; here the judge sees the whole, with the chunk
    marked). A server that does not answer in time costs the votes that it owes, not the run.

    Args:
        url: base of the server's address, such as "http://localhost:8000/v1".
        model: name of the model that it serves.
        votes: replies per chunk.
        timeout: seconds that one request may take.
        retries: further attempts after time-outs and passing failures of the server.
        workers: requests under way at one time.
        temperature: of the model's replies.
        top_p: of the model's replies.
        max_tokens: longest reply, in tokens.
        api_key: sent as a bearer token if given.
        wait: seconds before the first further attempt; doubled for each one after it.

    Raises:
        ValueError: a setting makes no sense; the message names it.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        votes: int = 3,
        timeout: float = 120.0,
        retries: int = 3,
        workers: int = 16,
        temperature: float = 0.6,
        top_p: float = 0.95,
        max_tokens: int = 10_000,
        api_key: str | None = None,
        wait: float = 1.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"url={url!r} is no address; give one such as http://localhost:8000/v1"
            )
        if not model:
            raise ValueError(f"model={model!r} names no model; give the name that the server knows")
        for name, value in (("votes", votes), ("workers", workers), ("max_tokens", max_tokens)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if timeout <= 0 or retries < 0:
            raise ValueError(
                f"timeout={timeout} must be positive and retries={retries} not negative"
            )
        self._url = url.rstrip("/") + "/chat/completions"
        self._votes, self._timeout, self._retries, self._wait = votes, timeout, retries, wait
        self._workers = workers
        self._body = {
            "model": model,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
        }
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def judge(self, solutions: Sequence[Solution]) -> list[list[float]]:
        """Scores of all chunks; see `Judge`.

        Raises:
            JudgeError: the server refuses the requests.
        """
        questions = [
            (row, self._ask(solution, k))
            for row, solution in enumerate(solutions)
            for k in range(len(solution.chunks))
        ]
        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            replies = [
                [pool.submit(self._request, body) for _ in range(self._votes)]
                for _, body in questions
            ]
            scores: list[list[float]] = [[] for _ in solutions]
            try:
                for (row, _), votes in zip(questions, replies, strict=True):
                    found = {_verdict(vote.result()) for vote in votes}
                    agreed = found.pop() if len(found) == 1 else None
                    scores[row].append(solutions[row].outcome if agreed is None else agreed)
            except JudgeError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return scores

    def _ask(self, solution: Solution, k: int) -> bytes:
        """The request about a chunk."""
        content = _PROMPT.format(
            verdict="right" if solution.right else "wrong",
            question=solution.question,
            answer=solution.answer,
            before="".join(solution.chunks[:k]),
            part=solution.chunks[k],
            after="".join(solution.chunks[k + 1 :]),
        )
        return json.dumps(
            self._body | {"messages": [{"role": "user", "content": content}]}
        ).encode()

    def _request(self, body: bytes) -> str | None:
        """The reply to a request, or None where the server gives none."""
        request = urllib.request.Request(self._url, data=body, headers=self._headers)
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(self._wait * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    return _content(json.load(response))
            except urllib.error.HTTPError as error:
                if error.code not in _PASSING:
                    raise JudgeError(
                        f"the judge at {self._url} answers {error.code} {error.reason}: "
                        f"{error.read(300).decode(errors='replace')}; correct its address, model "
                        "or key"
                    ) from error
                problem: Exception = error
            except (OSError, ValueError) as error:  # No connection, a time-out, or no JSON.
                problem = error
        logger.warning("no reply of the judge at %s: %s", self._url, problem)
        return None


def _content(reply: Any) -> str:
    """The text of a chat completion.

    Raises:
        ValueError: it is none.
    """
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no chat completion: {str(reply)[:200]}") from error
    return content or ""


def _verdict(reply: str | None) -> float | None:
    """What a reply says last in a box, or None."""
    found = _BOXED.findall(reply or "")
    return float(found[-1]) if found else None
