"""`jax_unmask.generate` with a model of every family: chats, conversations, samplers."""

import io
import json
import pathlib
import shutil

import pytest

import tiny
from jax_unmask.commands import generate

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
SPECIAL = [
    *("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|im_start|>", "<|im_end|>", "<role>", "</role>", "<|role_end|>", "<|mask|>"),
]
# What each family makes of a system prompt and a question.
CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
LING = "<role>SYSTEM</role>Be brief.<|role_end|><role>HUMAN</role>2+2?<|role_end|>"
PROMPTS = {
    "llada": "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "dream": f"{CHATML}<|im_start|>assistant\n",
    "sdar": f"{CHATML}<|im_start|>assistant\n",
    "llada_moe": f"{LING}<role>ASSISTANT</role>",
    "llada2_moe": f"{LING}<role>ASSISTANT</role>",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The recorded models, each with a tokenizer of bytes that knows all special tokens."""
    tokenizer, directories = tiny.byte_tokenizer(SPECIAL), {}
    for name in PROMPTS:
        directory = tmp_path_factory.mktemp(name)
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(FIXTURES / name / file, directory / file)
        tokenizer.save(str(directory / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if name.endswith("_moe"):  # These config.json files name no mask token.
            settings["mask_token"] = "<|mask|>"
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        directories[name] = directory
    return directories, tokenizer


def run(capsys, *arguments):
    generate.main(["--gen_length=8", *arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.default_cases("llada", "sdar")
def test_chat(models, capsys, name):
    directories, tokenizer = models
    policy = "entropy:steps=4" if name == "dream" else "dynamic:threshold=0.8"
    block = 8 if name in ("llada", "dream", "llada_moe") else 4
    (record,) = run(
        capsys,
        *(f"--model={directories[name]}", f"--policy={policy}", "--json", "--chat"),
        *("--system=Be brief.", "--prompt=2+2?", f"--block_length={block}"),
    )
    assert record["prompt_tokens"] == len(tokenizer.encode(PROMPTS[name]).ids)
    assert [message["role"] for message in record["prompt"]] == ["system", "user"]
    filled = [step for step in record["step_map"] if step >= 0]
    assert max(filled) + 1 == record["nfe"] <= 8
    assert len(filled) == 8 or block == 4  # Block-causal models may stop at the end of the text.


def test_conversation_continues_from_a_file(models, capsys, tmp_path):
    directories, tokenizer = models
    turns = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3+3?"},
    ]
    (tmp_path / "turns.json").write_text(json.dumps(turns))
    arguments = f"--model={directories['sdar']}", f"--messages={tmp_path / 'turns.json'}", "--json"
    (record,) = run(capsys, *arguments, "--thinking=off")
    text = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns)
    text += "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert record["prompt_tokens"] == len(tokenizer.encode(text).ids)
    assert record["block_length"] == 4  # The model's own.


def test_conversation_from_standard_input(models, capsys, monkeypatch):
    directories, _ = models
    monkeypatch.setattr("sys.stdin", io.StringIO("2+2?\n\n3+3?\n"))
    arguments = f"--model={directories['sdar']}", "--chat", "--json"
    first, second = run(capsys, *arguments)
    assert second["prompt"][:2] == [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": first["text"]},
    ]
    # Padding to a common length changes nothing: the same answer as to the same messages alone.
    (alone,) = run(capsys, *arguments, "--prompt=2+2?")
    assert alone["tokens"] == first["tokens"]


def test_commands_of_a_conversation(models, capsys, monkeypatch):
    directories, _ = models
    lines = ["/system Be brief.", "2+2?", "/undo", "//etc?", "/reset", "3+3?", "/help", "/x"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    generate.main([f"--model={directories['sdar']}", "--chat", "--json", "--gen_length=8"])
    shown = capsys.readouterr()
    prompts = [json.loads(line)["prompt"] for line in shown.out.splitlines()]
    system = {"role": "system", "content": "Be brief."}
    assert prompts == [
        [system, {"role": "user", "content": question}] for question in ("2+2?", "/etc?", "3+3?")
    ]
    assert shown.err.count("/reset         forget the conversation") == 2
    assert " /x:" in shown.err


def test_every_turn_draws_anew(models, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("2+2?\n/reset\n2+2?\n"))
    arguments = (f"--model={models[0]['sdar']}", "--chat", "--json", "--temperature=1")
    first, second = run(capsys, *arguments)
    assert first["prompt"] == second["prompt"]
    assert first["tokens"] != second["tokens"]


@pytest.mark.thorough
def test_filtered_draws(models, capsys):
    directories, _ = models
    arguments = (f"--model={directories['dream']}", "--prompt=2+2?", "--json", "--temperature=0.7")
    arguments += ("--policy=left_to_right:tokens_per_step=8",)
    (best,) = run(capsys, *arguments, "--top_k=1")
    assert all(value == 1 for value in best["confidence"])
    (drawn,) = run(capsys, *arguments, "--top_p=0.9")
    assert best["tokens"] != drawn["tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt=x", "--system=y"), "--system"),
        (("--messages=x.json", "--chat"), "--messages"),
        (("--messages=no/such.json",), "no/such.json"),
        (("--prompt=x", "--top_p=0"), "top_p = 0.0"),
        (("--prompt=x", "--top_k=-1"), "top_k = -1"),
    ],
)
def test_says_what_is_wrong(models, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        generate.main([f"--model={models[0]['sdar']}", *arguments])
    assert message in str(stopped.value) + capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "{}", "[]", '[{"role": "user"}]'])
def test_refuses_what_is_no_conversation(models, capsys, tmp_path, text):
    (tmp_path / "turns.json").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        generate.main([f"--model={models[0]['sdar']}", f"--messages={tmp_path / 'turns.json'}"])
    found = str(stopped.value) + capsys.readouterr().err
    assert f"--messages = '{tmp_path / 'turns.json'}'" in found
