"""A language model as judge, behind any server with OpenAI's chat completions."""

import asyncio
import collections
import concurrent.futures
import dataclasses
import datetime
import email.utils
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

import httpx2

from jax_unmask.settings import SettingError, check_ranges, setting
from jax_unmask.tasks.judges.base import Solution

logger = logging.getLogger(__name__)
# It reports every request, with the address in full.
logging.getLogger("httpx2").setLevel(logging.WARNING)

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
_HEADER_VALUE = re.compile(r"[!-~]*")  # Visible ASCII; a line end would begin another header.
# Status codes after which another attempt may succeed: too many requests, and server errors.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_MAX_REPLY_BYTES = 4 * 2**20
_MAX_WAIT_SECONDS = 60.0
_GIVE_UP_AFTER = 8


class JudgeError(OSError):
    """The server refuses the requests, so that no further one can succeed."""


class _NoReply(Exception):
    """One attempt failed; another one may succeed after at least `wait` seconds."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


@dataclasses.dataclass(frozen=True)
class LanguageModelJudge:
    """Asks a model about each chunk, several times, and takes what all votes agree on.

    Where the votes of a chunk differ, or none can be read, the chunk gets the outcome of the whole
    solution: 1 or -1 (arXiv 2509.06949, appendix; its public code shows the judge everything up to
        the end of the chunk, as an excerpt; here the prompt has the whole solution, with the chunk
        marked).

    A server that fails costs votes, not the run: it is too slow, cannot be reached, or its reply is
    malformed or too long. Once 8 requests in a row (and as many as there are workers) have failed,
    the rest of a call of `judge` goes without votes. Redirects are not followed, so that the key
    goes to no other host.

    Attributes:
        url: base of the server's address, such as "http://localhost:8000/v1".
        model: name of the model that it serves.
        api_key: sent as a bearer token if given; no message shows it.
        counts: number of attempts so far by what came of them: "answered", "status 503",
            "malformed reply", "ReadError", ...

    Raises:
        SettingError: a setting makes no sense; the message names it.
    """

    url: str
    model: str
    votes: int = setting(3, "Replies per chunk.", ge=1)
    timeout: float = setting(
        120.0, "Seconds of one request, from the connection to the reply's last byte.", gt=0
    )
    retries: int = setting(3, "Further attempts after failures that may pass.", ge=0)
    workers: int = setting(16, "Requests under way at one time.", ge=1)
    temperature: float = setting(0.6, "Temperature of the model's replies.", ge=0)
    top_p: float = setting(0.95, "Smallest nucleus of the model's replies.", gt=0, le=1)
    max_tokens: int = setting(10_000, "Longest reply, in tokens.", ge=1)
    wait: float = setting(
        1.0,
        "Seconds before the first further attempt, doubled for each one after it; at most 60, and "
        "what the server's Retry-After says if that is longer.",
        ge=0,
    )
    api_key: str | None = dataclasses.field(default=None, repr=False)
    counts: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter, init=False, compare=False
    )

    def __post_init__(self) -> None:
        try:
            is_address = self._address.scheme in ("http", "https") and self._address.host
        except httpx2.InvalidURL:
            is_address = False
        if not is_address:
            remedy = "Give one such as http://localhost:8000/v1"
            raise SettingError("url", self.url, "it is no address", remedy)
        if not self.model:
            remedy = "Give the name that the server at `url` knows"
            raise SettingError("model", self.model, "it names no model", remedy)
        check_ranges(self)
        if not _HEADER_VALUE.fullmatch(self.api_key or ""):
            raise SettingError(
                "api_key",
                "[key]",
                "it holds a line end, a space or another character that no header can carry",
                "Give the key alone; a line end often comes from the file that holds it",
            )

    def judge(self, solutions: Sequence[Solution]) -> list[list[float]]:
        """Scores of all chunks; see `Judge`.

        Raises:
            JudgeError: the server refuses the requests, and has never answered one.
        """
        chunks = [(row, k) for row, each in enumerate(solutions) for k in range(len(each.chunks))]
        bodies = [self._body(solutions[row], k) for row, k in chunks]
        # In a thread of its own, since the caller's may run an event loop already.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            replies = thread.submit(asyncio.run, _Requests(self).replies(bodies)).result()
        scores: list[list[float]] = [[] for _ in solutions]
        for (row, _), votes in zip(chunks, replies, strict=True):
            found = set(map(_verdict, votes))
            agreed = found.pop() if len(found) == 1 else None
            scores[row].append(solutions[row].outcome if agreed is None else agreed)
        return scores

    @property
    def _address(self) -> httpx2.URL:
        return httpx2.URL(self.url.rstrip("/") + "/chat/completions")

    @property
    def _headers(self) -> dict[str, str]:
        # A compressed body could be small and unpack to more than fits.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return headers | ({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})

    def _body(self, solution: Solution, k: int) -> bytes:
        """The request about a chunk."""
        content = _PROMPT.format(
            verdict="right" if solution.right else "wrong",
            question=solution.question,
            answer=solution.answer,
            before="".join(solution.chunks[:k]),
            part=solution.chunks[k],
            after="".join(solution.chunks[k + 1 :]),
        )
        sampling = {name: getattr(self, name) for name in ("temperature", "top_p", "max_tokens")}
        messages = [{"role": "user", "content": content}]
        return json.dumps({"model": self.model, **sampling, "messages": messages}).encode()


class _Requests:
    """The requests of one call of `judge`."""

    def __init__(self, judge: LanguageModelJudge) -> None:
        self._judge = judge
        self._free = asyncio.Semaphore(judge.workers)
        self._failed_in_a_row = 0

    async def replies(self, bodies: Sequence[bytes]) -> list[list[str | None]]:
        """The votes on each body; None where the server gives none."""
        judge, before = self._judge, self._judge.counts.copy()
        limits = httpx2.Limits(max_connections=judge.workers)
        try:
            async with (
                httpx2.AsyncClient(headers=judge._headers, limits=limits, timeout=None) as client,
                asyncio.TaskGroup() as group,
            ):
                votes = [
                    [group.create_task(self._vote(client, body)) for _ in range(judge.votes)]
                    for body in bodies
                ]
        except BaseExceptionGroup as errors:  # Of a refusal, and of nothing else.
            raise errors.exceptions[0] from None
        counted = judge.counts - before
        if set(counted) - {"answered"}:
            logger.warning("attempts at the judge at %s: %s", self._place(), dict(counted))
        return [[vote.result() for vote in each] for each in votes]

    async def _vote(self, client: httpx2.AsyncClient, body: bytes) -> str | None:
        judge = self._judge
        async with self._free:
            for attempt in range(judge.retries + 1):
                if self._failed_in_a_row >= max(judge.workers, _GIVE_UP_AFTER):
                    return None
                try:
                    reply = await self._attempt(client, body)
                except _NoReply as error:
                    judge.counts[str(error)] += 1
                    wait = max(error.wait, judge.wait * 2**attempt)
                    if attempt < judge.retries:
                        await asyncio.sleep(min(wait, _MAX_WAIT_SECONDS))
                else:
                    judge.counts["answered"] += 1
                    self._failed_in_a_row = 0
                    return reply
            self._failed_in_a_row += 1
        return None

    async def _attempt(self, client: httpx2.AsyncClient, body: bytes) -> str:
        """The text of the reply to one request.

        Raises:
            _NoReply: there is none.
            JudgeError: the server refuses it, and has never answered another one.
        """
        try:
            async with (
                asyncio.timeout(self._judge.timeout),
                client.stream("POST", self._judge._address, content=body) as response,
            ):
                received = bytearray()
                async for piece in response.aiter_raw():
                    received += piece
                    if len(received) > _MAX_REPLY_BYTES:
                        raise _NoReply("reply too long")
        except (httpx2.HTTPError, httpx2.StreamError, OSError, ValueError) as error:
            raise _NoReply(type(error).__name__) from error
        status = response.status_code
        if status == 200:
            return _content(received)
        if status not in _PASSING and not self._judge.counts["answered"]:
            raise JudgeError(self._refusal(response, received))
        raise _NoReply(f"status {status}", _retry_after(response.headers.get("Retry-After", "")))

    def _refusal(self, response: httpx2.Response, received: bytearray) -> str:
        says = received[:300].decode(errors="replace")
        if response.is_redirect:
            says = f"see {response.headers.get('Location', '')}; redirects are not followed"
        message = (
            f"the judge at {self._place()} answers {response.status_code} "
            f"{response.reason_phrase}: {says}; correct its address, model or key"
        )
        key = self._judge.api_key
        return message.replace(key, "[key]") if key else message

    def _place(self) -> str:
        """The address without what may be secret of it."""
        address = self._judge._address
        return f"{address.scheme}://{address.netloc.decode()}{address.path}"


def _content(body: bytes | bytearray) -> str:
    """The text of a chat completion.

    Raises:
        _NoReply: the body is none.
    """
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _NoReply("malformed reply") from error
    if content is not None and not isinstance(content, str):
        raise _NoReply("malformed reply")
    return content or ""


def _retry_after(value: str) -> float:
    """Seconds that a `Retry-After` header asks to wait: a number, or a date; 0 for anything else.

    >>> _retry_after("7"), _retry_after("soon"), _retry_after("Fri, 31 Dec 1999 23:59:59 GMT")
    (7.0, 0.0, 0.0)
    """
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _verdict(reply: str | None) -> float | None:
    r"""The last verdict that a reply puts in a box, or None.

    >>> _verdict(r"First \boxed{1}? No: \boxed{ -1 }"), _verdict("Hm."), _verdict(None)
    (-1.0, None, None)
    """
    found: list[Any] = _BOXED.findall(reply or "")
    return float(found[-1]) if found else None
