"""The server in this process: what clients get, and what is refused."""

import asyncio
import copy
import json
import logging
import pathlib
import shlex
import socket
import threading
import time
import types
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

pytest.importorskip("uvicorn", reason="serving needs the extra serve")

from jax_unmask import Generator, tasks
from jax_unmask.commands import serve
from jax_unmask.serving import engine as engines
from jax_unmask.serving.app import _Run
from jax_unmask.serving.protocol import _NOT_OFFERED, _READ

GEMMA = pathlib.Path(__file__).parents[1] / "fixtures" / "diffusion_gemma"
PUZZLES = ["1...2...3...4...=", "12..", "1...2...3...4..3=", ".2..2...3...4...="]


@pytest.fixture(scope="module")
def generators():
    return {
        (name, temperature): Generator.from_pretrained(
            "sudoku", policy=name, block_length=16, temperature=temperature
        )
        for name, temperature in (
            ("threshold:threshold=0.9", 0.0),
            ("threshold:threshold=0.9", 1.0),
            ("top_confidence", 0.0),
        )
    }


def test_any_mix_of_requests_gets_what_generate_gives(server, generators):
    requests, expected = [], []
    for number in range(24):
        (name, temperature), generator = list(generators.items())[number % 3]
        settings = {"threshold": 0.4 + number / 50}
        if name == "top_confidence":
            settings = {"nfe": 1 + number % 16}
        prompt = PUZZLES[number % len(PUZZLES)]
        requests.append(
            {
                "model": f"sudoku@{name}",
                "prompt": prompt,
                "seed": number,
                "temperature": temperature,
                **settings,
            }
        )
        (answer,) = generator.generate([prompt], seed=number, **settings)
        expected.append((answer.text, answer.nfe))
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(server.ask, requests))
    assert [status for status, _ in answers] == [200] * 24
    found = [(a["choices"][0]["text"], a["unmasking"]["nfe"][0]) for _, a in answers]
    assert found == expected
    assert len({nfe for _, nfe in found}) > 3


def test_choices_are_turns_of_one_seed(server, generators):
    body = {"prompt": PUZZLES[:2], "n": 2, "seed": 3, "temperature": 1, "max_tokens": 12}
    _, answer = server.ask(body)
    generator = generators["threshold:threshold=0.9", 1.0]
    expected = [
        generator.generate([puzzle], seed=3, turn=turn)[0].text[:12]
        for puzzle in PUZZLES[:2]
        for turn in range(2)
    ]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 4
    assert answer["usage"]["completion_tokens"] == 48


def test_streams_are_the_answer_in_pieces(server):
    body = {"messages": [{"role": "user", "content": PUZZLES[0]}], "policy": "top_confidence"}
    _, whole = server.ask(body, "/v1/chat/completions")
    options = {"include_usage": True, "include_canvas": True}
    events = server.stream({**body, "stream_options": options}, "/v1/chat/completions")
    deltas = [e["choices"][0]["delta"].get("content", "") for e in events if e["choices"]]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["usage"] == whole["usage"]
    canvases = [event["canvas"] for event in events if "canvas" in event]
    assert canvases[-1]["nfe"] == 16
    assert "".join(canvases[-1]["pieces"]) == "".join(deltas)
    assert sorted(canvases[-1]["step_map"]) == list(range(16))


def test_stop_strings_end_an_answer(server):
    _, whole = server.ask({"prompt": PUZZLES[0]})
    text = whole["choices"][0]["text"]
    _, cut = server.ask({"prompt": PUZZLES[0], "stop": [text[5:7]]})
    assert cut["choices"][0]["text"] == text[: text.index(text[5:7])]
    assert cut["choices"][0]["finish_reason"] == "stop"
    events = server.stream({"prompt": PUZZLES[0], "stop": [text[5:7]]})
    streamed = "".join(event["choices"][0]["text"] for event in events)
    assert streamed == cut["choices"][0]["text"]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"model": "gpt"}, 404, "sudoku, sudoku@thr"),
        ({"policy": "/etc/passwd"}, 400, "policy '/etc/passwd'"),
        ({"policy": []}, 400, "policy []"),
        ({"treshold": 0.5}, 400, "'treshold'"),
        ({"stream": "false"}, 400, "stream='false' must be"),
        ({"stream_options": "all"}, 400, "stream_options must"),
        ({"prompt": [True]}, 400, "tokens from 0 to"),
        ({"policy_settings": {"n": 3}}, 400, "n = 3.0: threshold has"),
        ({"prompt": "Hello"}, 400, "'Hello'"),
        ({"prompt": None}, 400, "prompt must"),
        ({"prompt": [99]}, 400, "tokens from 0 to"),
        ({"prompt": "1" * 40}, 400, "room for 17"),
        ({"prompt": "1" * 30000}, 413, "more than 20000 bytes"),
        ({"max_tokens": 0}, 400, "max_tokens=0 "),
        ({"max_tokens": "x"}, 400, "max_tokens"),
        ({"seed": -1}, 400, "seed=-1"),
        ({"seed": 1e300}, 400, "seed=1e+300"),
        ({"n": 99}, 400, "n=99 "),
        ({"temperature": 0.3}, 400, "draws at 0, 1"),
        ({"top_p": 0.3}, 400, "top_p=0.3"),
        ({"logprobs": 3}, 400, "logprobs "),
        ({"tools": [{"type": "function"}]}, 400, "tools "),
        ({"threshold": 2}, 400, "threshold = 2.0"),
        ({"nfe": 3}, 400, "nfe = 3"),
        ({"alpha": 3}, 400, "alpha = 3"),
        ({"policy_settings": {"treshold": 1}}, 400, "mean threshold"),
        ({"stop": [""]}, 400, "none empty"),
    ],
)
def test_says_what_is_wrong(server, changes, status, message):
    found, answer = server.ask({"prompt": PUZZLES[0], **changes})
    assert found == status
    assert message in answer["error"]["message"]


def test_refuses_what_is_no_request(server):
    assert server.ask(b"{", "/v1/completions")[0] == 400
    assert server.ask(b"[1]", "/v1/completions")[0] == 400
    assert (
        server.open("POST", "/v1/completions", b"{}", **{"Content-Type": "text/plain"}).status
        == 415
    )
    assert server.ask(b'{"prompt": "1", "seed": NaN}')[1]["error"]["message"].endswith("JSON")
    assert server.ask({}, "/v1/chat/completions")[1]["error"]["param"] == "messages"
    for message in ({"content": "1"}, {"role": "user"}, {"role": "user", "content": [{}]}, None):
        status, answer = server.ask({"messages": [message]}, "/v1/chat/completions")
        assert status == 400
        assert answer["error"]["param"] == "messages"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/completions", {}, 405),
        ("POST", "/v1/embeddings", {}, 404),
        ("GET", "/v1/models/none", {}, 404),
        ("GET", "/v1/models", {"Host": "evil.example"}, 400),
        ("GET", "/health", {"Host": "[::1]:80"}, 200),
        ("GET", "/health", {"Host": "LOCALHOST"}, 200),
    ],
)
def test_every_error_has_the_form_of_the_protocol(server, method, path, headers, status):
    answer = server.open(method, path, **headers)
    assert answer.status == status
    body = json.loads(answer.read())
    assert (set(body.get("error", ())) == {"message", "type", "param", "code"}) == (status >= 400)


def test_http_1_0_and_nothing_asked_for(server):
    """A request without a Host; null in every field that may be left out."""
    names = (*_READ, *_NOT_OFFERED)
    body = json.dumps(dict.fromkeys(names) | {"prompt": PUZZLES[0]}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.0\r\nContent-Type: Application/JSON\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b" 200 OK" in answer.splitlines()[0]
    assert len(json.loads(answer.split(b"\r\n\r\n")[1])["choices"][0]["text"]) == 16


def test_a_client_that_leaves_while_it_asks(server, caplog):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
        )
    assert server.ask({"prompt": PUZZLES[0]})[0] == 200
    assert "Traceback" not in caplog.text


def test_a_client_that_reads_slowly_misses_steps_alone(server):
    """What the engine reports meanwhile takes the place of what was not read."""

    async def reports():
        asked = server.service.model.understand(
            {"prompt": PUZZLES[:2], "policy": "top_confidence", "stream": True}, is_chat=False
        )
        run = _Run(server.service.engine, asked)
        while server.service.engine.running + server.service.engine.waiting:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        return [await asyncio.wait_for(run.news(), 60) for _ in range(2)]

    found = asyncio.run(reports())
    assert sorted(number for number, _, _ in found) == [0, 1]
    assert [(place.nfe, end) for _, place, end in found] == [(16, engines.DONE)] * 2


def test_what_still_runs_at_the_end_of_the_grace_is_told_so(server, monkeypatch):
    engine = server.service.engine
    monkeypatch.setattr(engine, "submit", lambda works: submit(works) or end_all())

    def end_all():
        for work in tuple(engine._alive):
            engine.cancel(work)

    submit = type(engine).submit.__get__(engine)
    status, answer = server.ask({"prompt": PUZZLES[0], "n": 16})
    assert status == 503
    assert "shutting down" in answer["error"]["message"]
    assert answer["error"]["type"] == "server_error"


def test_lists_models_and_counts(server):
    listed = json.loads(server.open("GET", "/v1/models").read())["data"]
    assert [each["id"] for each in listed][:2] == ["sudoku", "sudoku@threshold:threshold=0.9"]
    assert json.loads(server.open("GET", "/v1/models/sudoku").read())["object"] == "model"
    server.ask({"prompt": PUZZLES[0]})
    text = server.open("GET", "/metrics").read().decode()
    done = next(line for line in text.splitlines() if 'end="done"' in line)
    assert float(done.split()[-1]) >= 1
    assert "jax_unmask_running 0" in text
    about = json.loads(server.open("GET", "/about").read())
    assert [each["setting"] for each in about["policies"]] == ["threshold", "alpha", "nfe"]
    assert server.ask({"prompt": about["example"]})[0] == 200
    page = server.open("GET", "/")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(server, monkeypatch):
    monkeypatch.setattr(serve.answers, "load", None)
    with pytest.raises(SystemExit, match=f"port = {server.port}.*in use.*0 for any"):
        serve.main(["--model=sudoku", f"--port={server.port}"])


def test_listens_before_it_has_compiled(server, monkeypatch):
    may_go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = engines._Batch(may_go_on.wait, pool)
        monkeypatch.setattr(server.service.engine, "_first", first)
        answer = server.open("GET", "/health")
        assert (answer.status, json.loads(answer.read())) == (503, {"status": "starting"})
        assert answer.headers["Retry-After"] == "1"
        may_go_on.set()
        first.making.result()
    answer = server.open("GET", "/health")
    assert (answer.status, json.loads(answer.read())) == (200, {"status": "ok"})


def test_a_server_whose_programs_do_not_compile_ends(server):
    service, compiled = copy.copy(server.service), Future()
    compiled.set_exception(MemoryError("too large"))

    def run():
        service._started(8000)
        while not service._server.should_exit:
            time.sleep(0.01)

    service._server = types.SimpleNamespace(run=run, should_exit=False)
    service.engine = types.SimpleNamespace(warm=lambda shapes: compiled)
    with pytest.raises(MemoryError, match="too large"):
        service.run()


def test_says_what_to_try_and_what_it_gave(server, caplog, monkeypatch):
    monkeypatch.setattr(server.service, "_has_key", True)
    with caplog.at_level(logging.INFO):
        server.service._say(8000)
    assert f'-H "Authorization: Bearer ${serve.KEY}"' in caplog.messages[0]
    body = shlex.split(caplog.messages[0].splitlines()[1])[-1]
    assert json.loads(body) == {"prompt": tasks.example_prompt("sudoku")}
    assert serve.said({}) == "Gave 0 answers."
    assert serve.said({"timed_out": 2, "done": 1}) == "Gave 1 answer, 2 timed out."


def test_a_key_is_asked_for(server):
    server.service.app._key = "secret"
    try:
        assert server.ask({"prompt": PUZZLES[0]})[0] == 401
        assert server.open("GET", "/metrics").status == 401
        assert server.ask({"prompt": PUZZLES[0]}, Authorization="Bearer secret")[0] == 200
    finally:
        server.service.app._key = None


def test_requests_that_leave_are_cancelled_and_those_too_late_end(server):
    engine = server.service.engine
    told, model = [], server.service.model
    asked = model.understand({"prompt": PUZZLES[0], "policy": "top_confidence"}, is_chat=False)

    def work():
        notify = lambda work, place, end: told.append(end)
        return engines.CanvasRequest(asked.shape, asked.params, asked.prompts[0], notify)

    one = work()
    one._end = engines.CANCELLED  # Before it has a row.
    engine.submit([one])
    late = work()
    late.created -= 10_000
    engine.submit([late])
    while engine.running + engine.waiting:
        time.sleep(0.01)
    assert sorted(told) == [engines.CANCELLED, engines.TIMED_OUT]
    with pytest.raises(engines.Full):
        engine.submit([work() for _ in range(engine.settings.queue + engine.settings.slots + 1)])
    assert engine.counts.refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host=0.0.0.0",), "JAX_UNMASK_API_KEY"),
        (("--policy=treshold",), "mean threshold"),
        (("--lengths=16,x",), "--lengths = '16,x'"),
        (("--slots=0",), "slots = 0"),
        (("--port=70000",), "port = 70000.*cannot listen on 127.0.0.1"),
        ((f"--model={GEMMA}",), f"--model = {str(GEMMA)!r}: .*diffusion_gemma"),
        (("--gen_length=10", "--block_length=4"), "gen_length = 10"),
    ],
)
def test_says_what_is_wrong_before_anything_is_loaded(arguments, message, monkeypatch):
    monkeypatch.setattr(serve.answers, "load", None)
    with pytest.raises(SystemExit, match=message):
        serve.main(["--model=sudoku", *arguments])
