"""SIGTERM: what runs is finished, and the status is 0."""

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

pytest.importorskip("uvicorn", reason="serving needs the extra serve")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seconds", [60, 0])
def test_requests_that_run_are_finished(seconds):
    """Or told that they are not, where they take longer than they may."""
    command = [sys.executable, "-m", "jax_unmask.serve", "--model=sudoku", "--port=0", "--slots=2"]
    command.append(f"--drain_seconds={seconds}")
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        address = next(match[0] for line in lines if (match := re.search(r"http://[\d.:]+", line)))
        body = json.dumps({"prompt": ["1...2...3...4...="] * 16, "n": 16}).encode()
        asked = urllib.request.Request(
            f"{address}/v1/completions", body, {"Content-Type": "application/json"}
        )
        answers = []

        def ask():
            try:
                with urllib.request.urlopen(asked, timeout=300) as answer:
                    answers.append(json.loads(answer.read()))
            except urllib.error.HTTPError as error:
                answers.append(json.loads(error.read()))

        client = threading.Thread(target=ask)
        client.start()
        while b" 0" in (
            running := next(
                line
                for line in urllib.request.urlopen(f"{address}/metrics").read().splitlines()
                if line.startswith(b"jax_unmask_running")
            )
        ):
            del running
        server.send_signal(signal.SIGTERM)
        client.join(300)
        if seconds:
            assert len(answers[0]["choices"]) == 256
        else:
            assert "shutting down" in answers[0]["error"]["message"]
        assert server.wait(60) == 0
    finally:
        server.kill()
