"""Word-level tokenizers in Hugging Face format, for small denoisers trained from scratch."""

import json
import pathlib
from collections.abc import Sequence

from jax_unmask.runtime.files import atomic_write, replacing

BOS, EOS, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
"""Special tokens, spelled as LLaDA spells them; EOS pads, as in LLaDA."""

# A number, a word or a run of punctuation, each with the space before it. A number without a space
# is cut into digits, unless it is a token of its own.
_PATTERN = r" \d+|{numbers}\d| ?[A-Za-z]+| ?#+| ?[^\sA-Za-z\d#]"


def save_word_level(directory: str | pathlib.Path, vocabulary: Sequence[str]) -> dict[str, int]:
    """Writes `tokenizer.json` and `tokenizer_config.json` for a closed vocabulary.

    Text is cut into numbers, words and punctuation marks, each with the space before it, so
    decoding is plain concatenation. A number without a space before it is one token where the
    vocabulary holds it, else it is cut into digits. Text outside the vocabulary is an error when it
    is encoded, never an unknown token.

    Args:
        directory: where to write; must exist.
        vocabulary: the tokens, without the special ones. Token k gets id k + 3.

    Returns:
        Ids of the special tokens by role, and "vocab_size".

    Raises:
        ValueError: if the vocabulary holds a token twice or a special token.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokens = [BOS, EOS, MASK, *vocabulary]
    ids = {token: k for k, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise ValueError("vocabulary holds a token twice, or one of the special tokens")
    # A word-level model without an unknown token raises on text that it cannot encode.
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids))
    numbers = [token for token in vocabulary if token.isdecimal() and len(token) > 1]
    whole = rf"(?<!\d)(?:{'|'.join(numbers)})(?!\d)|" if numbers else ""
    pattern = tokenizers.Regex(_PATTERN.format(numbers=whole))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([BOS, EOS, MASK])
    directory = pathlib.Path(directory)
    with replacing(directory / "tokenizer.json") as partial:
        tokenizer.save(str(partial))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
    }
    atomic_write(directory / "tokenizer_config.json", json.dumps(settings, indent=1) + "\n")
    return {"bos": 0, "eos": 1, "pad": 1, "mask": 2, "vocab_size": len(tokens)}
