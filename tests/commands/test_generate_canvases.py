"""`jax_unmask.generate` with DiffusionGemma, which has no mask token."""

import io
import json
import pathlib
import shutil

import pytest

from jax_unmask import Generator
from jax_unmask.commands import generate

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "diffusion_gemma"
TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{{ '<turn>' + message['role'] + ' ' + message['content'] + '<end>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The recorded model with a tokenizer of bytes and letters that fits its 192 tokens."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers
    from tokenizers import models as token_models

    directory = tmp_path_factory.mktemp("gemma")
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(FIXTURE / file, directory / file)
    special = ["<pad>", "<eos>", "<bos>", "<turn>", "<end>"]
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: k for k, token in enumerate([*special, *characters])}
    tokenizer = tokenizers.Tokenizer(token_models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.slow
def test_stream(model):
    """A step per forward; the last one is the answer."""
    generator = Generator.from_pretrained(str(model), gen_length=10)
    (answer,) = generator.generate("2+2?", seed=3)
    for _ in range(2):  # The second runs the first one's program.
        steps = list(generator.stream("2+2?", seed=3))
        assert [step.number for step in steps][: answer.nfe] == list(range(1, answer.nfe + 1))
        assert steps[-1].number == answer.nfe
        assert steps[-1].tokens == answer.trajectory.tokens[0].tolist()
        assert steps[-1].text == answer.text
    first = next(generator.stream("2+2?", seed=3))  # Left after a step.
    assert first == steps[0]


@pytest.mark.thorough
def test_conversation(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("2+2?\n3+3?\n"))
    arguments = (f"--model={model}", "--chat", "--json", "--gen_length=10", "--live")
    generate.main(arguments)
    shown = capsys.readouterr()
    first, second = (json.loads(line) for line in shown.out.splitlines())
    # <bos>, <turn>, <end> and <turn>, and a token for each letter.
    assert first["prompt_tokens"] == 4 + len("user 2+2?") + len("model ")
    assert second["prompt"][1] == {"role": "assistant", "content": first["text"]}
    # Ten tokens need two canvases of eight.
    assert first["gen_length"] == 16
    assert first["block_length"] == len(first["tokens"]) // 2 == 8
    assert first["policy"] == "entropy_bounded:gamma=0.1"
    assert max(first["step_map"]) < first["nfe"]
    # A line per forward of either answer.
    assert len(shown.err.splitlines()) == first["nfe"] + second["nfe"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--temperature=0.5", "--temperature = 0.5: "),
        ("--quantization=int8", "--quantization = 'int8': "),
        ("--gen_length=128", "lower gen_length"),
    ],
)
def test_says_what_is_wrong(model, capsys, argument, message):
    with pytest.raises(SystemExit) as stopped:
        generate.main([f"--model={model}", "--prompt=2+2?", "--gen_length=8", argument])
    assert message in str(stopped.value) + capsys.readouterr().err
