"""The judging model: votes, readable replies, and servers that fail in every way."""

import contextlib
import http.server
import json
import logging
import threading
import time

import pytest

from jax_unmask.tasks.judges import LanguageModelJudge, Solution, language_model
from jax_unmask.tasks.judges.language_model import JudgeError


class Server(http.server.ThreadingHTTPServer):
    """Answers chat completions with what `script(part, attempt)` says about the part in question.

    A script gives the reply's text, a status code, bytes for the whole body, or a function that
    writes the whole response, headers included, to a file.
    """

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests, self.seen = script, [], {}
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][0]["content"]
        part = content.rsplit("<part>", 1)[1].split("</part>")[0]
        with self.server.lock:
            attempt = self.server.seen[part] = self.server.seen.get(part, -1) + 1
            self.server.requests.append((self.path, dict(self.headers), body))
        reply = self.server.script(part, attempt)
        if callable(reply):
            self.close_connection = True
            with contextlib.suppress(OSError):
                reply(self.wfile)
            return
        status, payload = 200, reply
        if isinstance(reply, int):
            status, payload = reply, b'{"error": "no such model"}'
        elif isinstance(reply, str):
            payload = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        with contextlib.suppress(OSError):  # The judge stopped waiting.
            self.send_response(status)
            self.end_headers()
            self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(script):
        server = Server(script)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def judge(server, **settings):
    return LanguageModelJudge(server.url, "judge-4b", **{"wait": 0.01, "timeout": 5.0, **settings})


def solution(*chunks, right=True):
    return Solution({}, "What is 2 + 2?", "4", chunks, right)


BOXED = {"good": r"Fine: \boxed{1}", "bad": r"First \boxed{1}? No. \boxed{ -1 }", "vague": "Hm."}


def test_unanimous_votes_count_and_the_rest_falls_back_on_the_outcome(serve):
    def script(part, attempt):
        return BOXED["good" if attempt else "bad"] if part == "split" else BOXED[part]

    server = serve(script)
    given = [
        solution("good", "bad", "vague", "split"),
        solution("vague", "bad", right=False),
        solution(),
    ]
    # The parts of both solutions are asked about three times each; "split" differs in its votes.
    assert judge(server).judge(given) == [[1.0, -1.0, 1.0, 1.0], [-1.0, -1.0], []]
    assert len(server.requests) == 6 * 3


def test_what_a_request_says(serve):
    server = serve(lambda *_: BOXED["good"])
    judge(server, votes=1, api_key="secret", max_tokens=77).judge([solution("a ", "b ", "c")])
    path, headers, body = next(r for r in server.requests if "<part>b " in str(r[2]))
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["max_tokens"]) == ("judge-4b", 77)
    content = body["messages"][0]["content"]
    assert "a <part>b </part>c" in content
    assert "What is 2 + 2?" in content
    assert "right as a whole" in content


def test_passing_failures_are_tried_again(serve):
    replies = [503, b"<html>", b'{"choices": []}', BOXED["bad"]]
    server = serve(lambda _, attempt: replies[attempt])
    one = judge(server, votes=1, retries=3)
    assert one.judge([solution("x")]) == [[-1.0]]
    assert one.counts == {"status 503": 1, "malformed reply": 2, "answered": 1}


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHOICES = '{"choices": [{"message": {"content": %s}}]}'


def raw(*pieces, wait=0.0):
    """A response in pieces that come some time apart."""

    def write(file):
        for piece in pieces:
            file.write(piece)
            time.sleep(wait)

    return write


MALFORMED = {
    "bad chunk": raw(HEAD, b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n"),
    "short body": raw(HEAD, b"Content-Length: 1000\r\n\r\n{}"),
    "status line": raw(b"HELLO\r\n\r\n"),
    "status": raw(b"HTTP/1.1 abc OK\r\n\r\n"),
    "headers": raw(b"HTTP/1.1 200 OK\r\n: \0\xff\r\nContent-Length: x\r\n\r\n{}"),
    "endless headers": raw(HEAD, b"X: " + b"y" * 10**6),
    "nothing": raw(),
    "another type": raw(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n"),
    "false compression": raw(HEAD, b"Content-Encoding: gzip\r\n\r\n{}"),
    "no text": b"\xff\xfe",
    "deep nesting": b"[" * 200_000,
    "list": b"[]",
    "number": (CHOICES % "7").encode(),
    "huge number": b"1" * 10_000,
    "too long": b" " * (5 * 2**20),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_reply_costs_its_vote(serve, fault):
    server = serve(lambda *_: MALFORMED[fault])
    one = judge(server, votes=1, retries=1)
    assert one.judge([solution("x", right=False)]) == [[-1.0]]
    assert one.counts.total() == 2
    assert not one.counts["answered"]


@pytest.mark.parametrize("start", [b"", HEAD, HEAD + b"\r\n"], ids=["status", "headers", "body"])
def test_a_slow_server_holds_a_request_no_longer_than_its_time(serve, start):
    server = serve(lambda *_: raw(start, *[b" "] * 100, wait=0.05))
    began = time.monotonic()
    found = judge(server, timeout=0.2, retries=1).judge([solution("x"), solution("y", right=False)])
    assert found == [[1.0], [-1.0]]
    assert time.monotonic() - began < 3.0


def test_a_dead_server_is_not_asked_for_every_vote(serve):
    server = serve(lambda *_: 503)
    one = judge(server, workers=2, retries=0)
    assert one.judge([solution(*"x" * 50)]) == [[1.0] * 50]
    assert one.counts.total() < 12


def test_no_server_at_all(serve):
    server = serve(lambda *_: BOXED["good"])
    server.shutdown()
    server.server_close()
    assert judge(server, retries=0).judge([solution("x", right=False)]) == [[-1.0]]


@pytest.mark.parametrize(("after", "least", "most"), [("1", 1.0, 4.0), ("-1", 0.0, 0.9)])
def test_the_server_says_when_to_ask_again(serve, after, least, most):
    busy = raw(
        b"HTTP/1.1 429 Busy\r\nContent-Length: 0\r\nRetry-After: %b\r\n\r\n" % after.encode()
    )
    server = serve(lambda _, attempt: BOXED["bad"] if attempt else busy)
    began = time.monotonic()
    assert judge(server, votes=1).judge([solution("x")]) == [[-1.0]]
    assert least <= time.monotonic() - began < most


def test_no_server_makes_the_judge_wait_for_long(serve, monkeypatch):
    monkeypatch.setattr(language_model, "_MAX_WAIT_SECONDS", 0.05)
    busy = raw(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 99999999999\r\n\r\n")
    server = serve(lambda _, attempt: BOXED["bad"] if attempt else busy)
    assert judge(server, votes=1).judge([solution("x")]) == [[-1.0]]


def test_a_refusal_ends_the_run_and_says_why(serve):
    server = serve(lambda *_: 404)
    with pytest.raises(JudgeError, match=r" 404 .*no such model"):
        judge(server).judge([solution(*"abcdef")])


def test_a_refusal_after_answers_costs_its_votes(serve):
    server = serve(lambda part, _: BOXED["bad"] if part == "good" else 400)
    one = judge(server, votes=1)
    one.judge([solution("good")])
    assert one.judge([solution("too long", "good")]) == [[1.0, -1.0]]


def test_redirects_are_not_followed(serve):
    other = serve(lambda *_: BOXED["good"])
    moved = b"HTTP/1.1 307 Moved\r\nContent-Length: 0\r\nLocation: %b\r\n\r\n" % other.url.encode()
    server = serve(lambda *_: raw(moved))
    with pytest.raises(JudgeError, match="answers 307"):
        judge(server, api_key="secret").judge([solution("x")])
    assert not other.requests


def test_the_key_is_in_no_message(serve, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(
        lambda *_: raw(b"HTTP/1.1 403 No\r\nContent-Length: 18\r\n\r\nBad key: s3cr3t-k.")
    )
    one = judge(server, api_key="s3cr3t-k")
    with pytest.raises(JudgeError, match=r"Bad key: \[key\]") as error:
        one.judge([solution("x")])
    shown = [str(error.value), repr(one), caplog.text]
    for key in ("s3cr3t-k\n", "s3cr3t-k\r\nX: y", "s3cr3t k", "s3cr3t-kä"):
        with pytest.raises(ValueError, match=r"api_key = .*line end") as bad:
            judge(server, api_key=key)
        shown.append(str(bad.value))
    assert not any("s3cr3t" in text for text in shown)


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "localhost:8000"},
        {"url": "http://"},
        {"model": ""},
        {"votes": 0},
        {"timeout": 0.0},
        {"retries": -1},
    ],
)
def test_bad_settings(settings):
    given = {"url": "http://localhost:1/v1", "model": "m"} | settings
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name} ?= ?{value!r}"):
        LanguageModelJudge(**given)
