"""A server in this process, and how to ask it."""

import contextlib
import http.client
import json
import threading
import time

import pytest

ARGUMENTS = (
    *("--model=sudoku", "--block_length=16", "--port=0", "--slots=4", "--max_body=20000"),
    "--policy=threshold:threshold=0.9",
    "--policy=learned:sudoku-seed0",
    "--policy=top_confidence",
    "--temperatures=0,1",
)


class Running:
    """A server on a thread."""

    def __init__(self, *arguments: str) -> None:
        from jax_unmask.commands import serve

        self.service = serve.Service(serve.parser().parse_args(arguments))
        self.server = self.service._server
        # Signals are for main threads.
        type(self.server).capture_signals = lambda _: contextlib.nullcontext()
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def close(self):
        self.server.should_exit = True
        self.thread.join(30)
        self.service.engine.close()

    def open(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        return connection.getresponse()

    def ask(self, body, path="/v1/completions", **headers):
        answer = self.open("POST", path, body, **headers)
        return answer.status, json.loads(answer.read())

    def stream(self, body, path="/v1/completions"):
        answer = self.open("POST", path, {**body, "stream": True})
        events = answer.read().decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


@pytest.fixture(scope="session")
def server():
    pytest.importorskip("uvicorn", reason="serving needs the extra serve")
    running = Running(*ARGUMENTS)
    yield running
    running.close()
