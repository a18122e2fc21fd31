"""The official Python client against the server."""

import time

import pytest

openai = pytest.importorskip("openai", reason="the OpenAI client is not installed")

pytestmark = pytest.mark.slow
PUZZLE = "1...2...3...4...="


@pytest.fixture
def client(server):
    address = f"http://127.0.0.1:{server.port}/v1"
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0)


def test_answers_whole_and_in_pieces(client):
    whole = client.completions.create(model="sudoku", prompt=PUZZLE, seed=1)
    text = whole.choices[0].text
    assert len(text) == 16
    assert whole.unmasking["nfe"][0] <= 16
    pieces = client.completions.create(model="sudoku", prompt=PUZZLE, seed=1, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == text
    messages = [{"role": "user", "content": PUZZLE}]
    chat = client.chat.completions.create(model="sudoku", messages=messages, seed=1)
    assert chat.choices[0].message.content == text
    assert chat.usage.completion_tokens == 16
    stream = client.chat.completions.create(
        model="sudoku", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    pieces = list(stream)
    assert pieces[-1].usage.total_tokens == 33
    deltas = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert "".join(deltas) == text


def test_settings_of_the_policy_and_errors(client):
    fast = client.completions.create(
        model="sudoku@top_confidence", prompt=PUZZLE, extra_body={"nfe": 4}
    )
    assert fast.unmasking["nfe"] == [4]
    assert next(model.id for model in client.models.list()) == "sudoku"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt=PUZZLE)
    with pytest.raises(openai.BadRequestError, match=r"'hello': .*sudoku"):
        client.completions.create(model="sudoku", prompt="hello")


def test_a_client_that_leaves_frees_its_row(client, server):
    with client.completions.create(
        model="sudoku@top_confidence", prompt=[PUZZLE] * 16, n=16, stream=True
    ) as pieces:
        next(iter(pieces))
    counts = server.service.engine
    for _ in range(500):
        if not counts.running + counts.waiting:
            break
        time.sleep(0.01)
    assert not counts.running + counts.waiting
    assert client.completions.create(model="sudoku", prompt=PUZZLE).choices[0].text
