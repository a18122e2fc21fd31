"""Tokenizers and chat templates of the families, against recorded ids and renderings."""

import gzip
import json
import pathlib
import shutil

import jinja2
import pytest

from jax_unmask import denoisers
from jax_unmask.denoisers import families
from jax_unmask.denoisers.families import dream, ling, sdar

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
CASES = json.loads((FIXTURES / "tokenizer_sdar" / "cases.json").read_text())
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3+3?"},
]


def render(template, messages, **more):
    return jinja2.Template(template).render(messages=messages, **more)


class TestTemplates:
    @pytest.mark.parametrize("case", CASES["chat"], ids=lambda case: case["text"][:20])
    def test_sdar(self, case):
        text = render(
            sdar.CHAT_TEMPLATE,
            case["messages"],
            add_generation_prompt=case["add_generation_prompt"],
        )
        assert text == case["text"]

    def test_sdar_keeps_reasoning_of_the_last_answer_only(self):
        """As its own template does: earlier answers lose what they thought."""
        thought = [
            {**turn, "content": f"<think>\nWell.\n</think>\n\n{turn['content']}"}
            if turn["role"] == "assistant"
            else turn
            for turn in TURNS
        ]
        assert render(sdar.CHAT_TEMPLATE, thought) == render(sdar.CHAT_TEMPLATE, TURNS)
        last = render(sdar.CHAT_TEMPLATE, thought[:3])
        assert last.endswith("<|im_start|>assistant\n<think>\nWell.\n</think>\n\n4<|im_end|>\n")

    def test_sdar_without_thinking(self):
        more = {"add_generation_prompt": True, "enable_thinking": False}
        text = render(sdar.CHAT_TEMPLATE, TURNS[-1:], **more)
        assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")

    def test_dream_has_a_system_turn_of_its_own(self):
        question = "<|im_start|>user\nAnd 3+3?<|im_end|>\n<|im_start|>assistant\n"
        text = render(dream.CHAT_TEMPLATE, TURNS[-1:], add_generation_prompt=True)
        own = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        assert text == own + question
        text = render(dream.CHAT_TEMPLATE, [TURNS[0], TURNS[3]], add_generation_prompt=True)
        assert text == "<|im_start|>system\nBe brief.<|im_end|>\n" + question

    def test_ling(self):
        text = render(ling.CHAT_TEMPLATE, TURNS, add_generation_prompt=True)
        assert text == (
            "<role>SYSTEM</role>Be brief.<|role_end|><role>HUMAN</role>2+2?<|role_end|>"
            "<role>ASSISTANT</role>4<|role_end|><role>HUMAN</role>And 3+3?<|role_end|>"
            "<role>ASSISTANT</role>"
        )
        text = render(ling.CHAT_TEMPLATE, TURNS[1:2], add_generation_prompt=True)
        assert text.startswith("<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN")


@pytest.fixture(scope="module")
def directories(shared_data_dir, tmp_path_factory):
    """SDAR's tokenizer with its tokenizer.json, and with its vocabulary and merges only."""
    source = shared_data_dir / "tokenizer_sdar_qwen3"
    if not source.is_dir():
        pytest.skip(f"{source} does not exist")
    fast, slow = (tmp_path_factory.mktemp(name) for name in ("fast", "slow"))
    for directory, packed in ((fast, ("tokenizer.json",)), (slow, ("vocab.json", "merges.txt"))):
        for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(source / name, directory / name)
        for name in packed:
            (directory / name).write_bytes(gzip.decompress((source / f"{name}.gz").read_bytes()))
    return {"tokenizer.json": fast, "vocab.json": slow}


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json"])
def tokenizer(directories, request):
    return denoisers.load_tokenizer(directories[request.param])


class TestSDARTokenizer:
    def test_special_tokens(self, tokenizer):
        assert tokenizer.mask_id == CASES["mask_token_id"]
        assert (tokenizer.eos_id, tokenizer.pad_id) == (151_643, 151_643)
        assert tokenizer.stop_ids == (151_643, 151_645)
        assert tokenizer.vocab_size == CASES["vocab_size"]

    @pytest.mark.parametrize("case", CASES["encode"], ids=lambda case: repr(case["text"]))
    def test_encodings(self, tokenizer, case):
        assert tokenizer.encode(case["text"]) == case["ids"]
        for skip, key in ((False, "decoded"), (True, "decoded_skip_special")):
            text = tokenizer.decode(case["ids"], skip_special_tokens=skip, cut_at_eos=False)
            assert text == case[key]

    @pytest.mark.parametrize("case", CASES["chat"], ids=lambda case: case["text"][:20])
    def test_chats(self, tokenizer, case):
        ids = tokenizer.encode_prompt(case["messages"])
        if not case["add_generation_prompt"]:
            ids = ids[: len(ids) - len(tokenizer.encode("<|im_start|>assistant\n"))]
        assert ids == case["ids"]

    def test_thinking_can_be_closed(self, tokenizer):
        ids = tokenizer.encode_prompt(TURNS[1:2], thinking=False)
        text = tokenizer.decode(ids, skip_special_tokens=False, cut_at_eos=False)
        assert text.endswith("assistant\n<think>\n\n</think>\n\n")

    def test_an_answer_ends_with_its_turn(self, tokenizer):
        ids = tokenizer.encode("Six.<|im_end|>\n<|im_start|>user\nMore<|endoftext|>")
        assert tokenizer.decode(ids) == "Six."

    def test_pieces_make_up_the_text(self, tokenizer):
        text = "Zoë: 界 🙂 ok<|im_end|>"
        ids = tokenizer.encode(text)
        pieces = tokenizer.pieces(ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == text
        assert "\ufffd" not in pieces
        # A mask between the parts of a character: what is there of it is not lost.
        split = next(place for place, piece in enumerate(pieces) if not piece)
        assert "\ufffd" in "".join(tokenizer.pieces([ids[split], tokenizer.mask_id]))

    def test_saves_all_files(self, tokenizer, tmp_path):
        tokenizer.save(tmp_path)
        shutil.copyfile(tokenizer.directory / "config.json", tmp_path / "config.json")
        again = denoisers.load_tokenizer(tmp_path)
        assert again.encode_prompt(TURNS) == tokenizer.encode_prompt(TURNS)


def test_template_tokens_are_those_of_the_template():
    for family in families.FAMILIES:
        for token in family.template_tokens:
            assert token in family.chat_template
