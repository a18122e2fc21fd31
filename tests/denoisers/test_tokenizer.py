"""The tokenizer wrapper: encoding, chat templates, decoding, padding, and its errors."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from jax_unmask import denoisers

MODEL = pathlib.Path(__file__).parents[1] / "fixtures" / "llada"
WORDS = ["what", "is", "the", "answer", "?", "4", "2", "+", "=", "system", "user", "assistant"]
SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"]
CHAT = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
NEWLINES = "\n\n"
EOS, MASK = 1, 2


def write_tokenizer(directory: pathlib.Path, special=(*SPECIAL, *CHAT), **settings) -> None:
    """A word-level tokenizer; words are separated by spaces, paragraphs are a token."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    ids = {token: k for k, token in enumerate([*special, *WORDS, NEWLINES])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(NEWLINES, "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Fuse()])
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[1],
        "mask_token": SPECIAL[2],
    }
    config |= settings
    config = {name: value for name, value in config.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_config(directory: pathlib.Path, **changes) -> None:
    fields = json.loads((MODEL / "config.json").read_text())
    fields |= {"mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": EOS} | changes
    (directory / "config.json").write_text(json.dumps(fields))


@pytest.fixture
def directory(tmp_path):
    write_tokenizer(tmp_path)
    write_config(tmp_path)
    return tmp_path


@pytest.fixture
def tokenizer(directory):
    return denoisers.load_tokenizer(directory)


def ids_of(*tokens: str) -> list[int]:
    table = [*SPECIAL, *CHAT, *WORDS, NEWLINES]
    return [table.index(token) for token in tokens]


class TestEncoding:
    def test_special_ids(self, tokenizer):
        assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id) == (MASK, EOS, EOS)
        assert tokenizer.vocab_size == len(SPECIAL) + len(CHAT) + len(WORDS) + 1

    def test_plain_text_gets_nothing_added(self, tokenizer):
        expected = ids_of("what", "is", "the", "answer", "?")
        assert tokenizer.encode("what is the answer ?") == expected
        assert tokenizer.encode_prompt("what is the answer ?") == expected
        assert tokenizer.encode("") == []

    def test_a_text_outside_of_a_closed_vocabulary_is_named(self, tokenizer):
        with pytest.raises(ValueError, match=r"'what is seven'.*another model"):
            tokenizer.encode("what is seven")

    def test_llada_template_for_messages(self, tokenizer):
        messages = [
            {"role": "system", "content": " is the answer"},
            {"role": "user", "content": "4 + 2 = ?\n"},
        ]
        start, end, eot = CHAT
        assert tokenizer.encode_prompt(messages) == ids_of(
            *(SPECIAL[0], start, "system", end, NEWLINES, "is", "the", "answer", eot),
            *(start, "user", end, NEWLINES, "4", "+", "2", "=", "?", eot),
            *(start, "assistant", end, NEWLINES),
        )

    def test_an_opened_answer_follows_the_assistants_header(self, tokenizer):
        messages = [{"role": "user", "content": "4 + 2"}]
        opened = [*messages, {"role": "assistant", "content": "the answer"}]
        expected = tokenizer.encode_prompt(messages) + ids_of("the", "answer")
        assert tokenizer.encode_prompt(opened) == expected

    def test_own_template_wins(self, tmp_path):
        write_tokenizer(tmp_path, chat_template="{{ messages[0]['content'] }} =")
        write_config(tmp_path)
        tokenizer = denoisers.load_tokenizer(tmp_path)
        prompt = tokenizer.encode_prompt([{"role": "user", "content": "4 + 2"}])
        assert prompt == ids_of("4", "+", "2", "=")

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
    def test_one_that_refuses_is_named_by_its_file(self, tmp_path, name):
        template = "{{ raise_exception('no system') }}"
        write_tokenizer(tmp_path, chat_template=template)
        if name.endswith(".jinja"):
            (tmp_path / name).write_text(template)
        with pytest.raises(ValueError, match=f"{name} refuses .*: no system"):
            denoisers.load_tokenizer(tmp_path).encode_prompt([{"role": "user", "content": "4"}])

    def test_no_template_and_no_default(self, tmp_path):
        write_tokenizer(tmp_path)
        tokenizer = denoisers.load_tokenizer(tmp_path)
        with pytest.raises(ValueError, match=f"{tmp_path} has no .*add chat_template.jinja"):
            tokenizer.encode_prompt([{"role": "user", "content": "4"}])

    def test_default_template_without_its_tokens(self, tmp_path):
        write_tokenizer(tmp_path, special=SPECIAL)
        write_config(tmp_path)
        tokenizer = denoisers.load_tokenizer(tmp_path)
        with pytest.raises(ValueError, match=r"lacks <\|start_header_id\|>, .*plain text"):
            tokenizer.encode_prompt([{"role": "user", "content": "4"}])


class TestDecoding:
    def test_cuts_at_the_first_eos(self, tokenizer):
        ids = [*ids_of("4", "2"), EOS, *ids_of("what"), EOS]
        assert tokenizer.decode(ids) == "42"
        assert tokenizer.decode(ids, cut_at_eos=False) == "42what"
        assert tokenizer.decode(np.array(ids)) == "42"
        assert tokenizer.decode([EOS, *ids_of("4")]) == ""

    def test_special_tokens(self, tokenizer):
        ids = [*ids_of("4"), MASK, *ids_of("2")]
        assert tokenizer.decode(ids) == "42"
        assert tokenizer.decode(ids, skip_special_tokens=False) == "4<|mdm_mask|>2"


class TestPadding:
    def test_left(self, tokenizer):
        prompts = tokenizer.pad_prompts([[7, 8, 9], [], [5]], 4)
        np.testing.assert_array_equal(
            prompts.tokens, [[EOS, 7, 8, 9], [EOS] * 4, [EOS, EOS, EOS, 5]]
        )
        np.testing.assert_array_equal(prompts.mask, [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]])
        assert (prompts.tokens.dtype, prompts.mask.dtype) == (np.int32, bool)

    def test_too_long(self, tokenizer):
        message = "prompt 1 has 5 tokens, .* of 4; raise the prompt length"
        with pytest.raises(ValueError, match=message):
            tokenizer.pad_prompts([[3], [3, 4, 5, 6, 7]], 4)

    def test_truncation_keeps_the_end(self, tokenizer):
        prompts = tokenizer.pad_prompts([[3], [3, 4, 5, 6, 7]], 3, truncate=True)
        np.testing.assert_array_equal(prompts.tokens, [[EOS, EOS, 3], [5, 6, 7]])


class TestFiles:
    def test_saved_with_a_model_byte_for_byte(self, tokenizer, directory, tmp_path):
        denoiser, params = denoisers.from_pretrained(MODEL)
        target = tmp_path / "saved"
        denoisers.save_pretrained(target, denoiser, params, tokenizer)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (target / name).read_bytes() == (directory / name).read_bytes()

    def test_model_takes_the_mask_token_from_the_tokenizer(self, directory):
        shutil.copyfile(MODEL / "model.safetensors", directory / "model.safetensors")
        write_config(directory, mask_token_id=None)
        denoiser, _ = denoisers.from_pretrained(directory)
        assert denoiser.config.mask_token_id == MASK

    def test_config_names_the_mask_token_alone(self, tmp_path):
        write_tokenizer(tmp_path, mask_token=None)
        write_config(tmp_path, mask_token_id=4)
        assert denoisers.load_tokenizer(tmp_path).mask_id == 4

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            denoisers.load_tokenizer(tmp_path / "nowhere")
        write_config(tmp_path, mask_token_id=None)
        with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
            denoisers.load_tokenizer(tmp_path)
        write_tokenizer(tmp_path, mask_token=None)
        with pytest.raises(ValueError, match="set mask_token_id"):
            denoisers.load_tokenizer(tmp_path)

    @pytest.mark.parametrize("role", ["mask", "eos"])
    def test_disagreement(self, directory, role):
        write_config(directory, **{f"{role}_token_id": 9})
        with pytest.raises(ValueError, match=rf"{role}_token_id=9 in config\.json"):
            denoisers.load_tokenizer(directory)

    def test_more_tokens_than_rows(self, directory):
        write_config(directory, vocab_size=10, embedding_size=10)
        with pytest.raises(ValueError, match=r"has 19 tokens, .*only 10"):
            denoisers.load_tokenizer(directory)

    def test_corrupt(self, directory):
        (directory / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            denoisers.load_tokenizer(directory)
