"""The judging model: votes, readable replies, and servers that fail in every way."""

from __future__ import annotations

import http.server
import json
import threading
import time

import pytest

from jax_unmask.tasks.judges import LanguageModelJudge, Solution
from jax_unmask.tasks.judges.language_model import JudgeError


class Server(http.server.ThreadingHTTPServer):
    """Answers chat completions with what `script(part, attempt)` says about the part in question.

    A script gives the reply's text, a status code, or bytes for the whole body.
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
        status, payload = 200, reply
        if isinstance(reply, int):
            status, payload = reply, b'{"error": "no such model"}'
        elif isinstance(reply, str):
            payload = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        try:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(payload)
        except OSError:
            pass  # The judge stopped waiting.

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
    assert judge(server, votes=1, retries=3).judge([solution("x")]) == [[-1.0]]


def test_a_silent_server_costs_votes_and_not_the_run(serve):
    server = serve(lambda *_: time.sleep(1.0) or BOXED["bad"])
    start = time.monotonic()
    found = judge(server, timeout=0.05, retries=1).judge(
        [solution("x"), solution("y", right=False)]
    )
    assert found == [[1.0], [-1.0]]
    assert time.monotonic() - start < 5.0


def test_no_server_at_all(serve):
    server = serve(lambda *_: BOXED["good"])
    server.shutdown()
    server.server_close()
    assert judge(server, retries=0).judge([solution("x", right=False)]) == [[-1.0]]


def test_a_refusal_ends_the_run_and_says_why(serve):
    server = serve(lambda *_: 404)
    with pytest.raises(JudgeError, match=r"answers 404 .*no such model.*correct its address"):
        judge(server).judge([solution(*"abcdef")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "url='localhost:8000' is no address"),
        ({"model": ""}, "model='' names no model"),
        ({"votes": 0}, "votes=0 must be at least 1"),
        ({"timeout": 0.0}, "timeout=0.0 must be positive"),
    ],
)
def test_bad_settings(settings, message):
    given = {"url": "http://localhost:1/v1", "model": "m"} | settings
    with pytest.raises(ValueError, match=message):
        LanguageModelJudge(given.pop("url"), given.pop("model"), **given)
