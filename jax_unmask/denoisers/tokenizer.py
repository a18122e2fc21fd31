"""Text to token ids and back, as rollouts need it."""

import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jax_unmask.denoisers import families, hub
from jax_unmask.denoisers.families import Family
from jax_unmask.prompts import Prompts

logger = logging.getLogger(__name__)
Messages = list[dict[str, str]]

# Files that a tokenizer is built from if there is no tokenizer.json: byte-level BPE of Qwen's
# lineage.
_SLOW_FILES = ("vocab.json", "merges.txt")
# Where a chat template may stand, the first that is used first; the last is of processors.
_TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")


class Tokenizer:
    """A Hugging Face fast tokenizer with the conventions of masked diffusion.

    Attributes:
        directory: where its files lie.
        mask_id: id of the mask token.
        eos_id: id that ends a response.
        stop_ids: all ids that end a response: `eos_id`, what ends a turn in the family's chats, and
            the other EOS tokens of config.json and generation_config.json.
        pad_id: id that pads prompts on the left.
        vocab_size: number of tokens, special ones included (the model's table may have more rows).
        example: a prompt that the model takes, which errors name; None where none is known.
    """

    def __init__(
        self,
        backend: Any,
        directory: pathlib.Path,
        *,
        mask_id: int,
        eos_id: int,
        pad_id: int,
        family: Family | None = None,
        stop_ids: Sequence[int] = (),
        example: str | None = None,
    ) -> None:
        """Wraps a `PreTrainedTokenizerFast`; see `load_tokenizer`."""
        self._backend = backend
        # Its methods for one text need a third of the time, and no threads.
        self._fast = backend.backend_tokenizer
        self._fast.no_truncation()
        self._fast.no_padding()
        self._family = family
        self._pieces: dict[tuple[int, ...], str] = {}
        self.directory = directory
        self.mask_id = mask_id
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.vocab_size = len(backend)
        self.example = example
        vocabulary = backend.get_vocab()
        ends = () if family is None else family.turn_ends
        stops = {vocabulary[token] for token in ends if token in vocabulary} | set(stop_ids)
        self.stop_ids: tuple[int, ...] = (eos_id, *sorted(stops - {eos_id}))

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; nothing is added.

        Raises:
            ValueError: the text is no valid Unicode, or the vocabulary is closed and has no token
                for a part of it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{text[:80]!a} holds half of a surrogate pair at character {error.start}; remove "
                "it, or write the whole character"
            ) from None
        try:
            return self._fast.encode(text, add_special_tokens=False).ids
        except Exception as error:  # The library raises nothing narrower.
            if "[UNK]" not in str(error):
                raise
            raise ValueError(self._unknown(text)) from None

    def _unknown(self, text: str) -> str:
        """The error for a text with words that a closed vocabulary lacks."""
        vocabulary, splitter = self._backend.get_vocab(), self._backend.backend_tokenizer
        pieces = [piece for piece, _ in splitter.pre_tokenizer.pre_tokenize_str(text)]
        unknown = dict.fromkeys(piece for piece in pieces if piece not in vocabulary)
        special = set(self._backend.all_special_tokens)
        known = {word.strip() for word in vocabulary if word not in special}
        words = sorted(word for word in known if not word.isdecimal())
        numbers = sorted((word for word in known if word.isdecimal()), key=int)
        more = ["..."] if len(words) > 80 else []
        if numbers and len(known) > 20:
            numbers = [f"and numbers from {numbers[0]} to {numbers[-1]}"]
        spaced = any(word.startswith(" ") for word in vocabulary)
        # Clients of a server read this too: the name of the model, and no path.
        name = self.directory.name
        remedy = "Give another prompt or task, or another model"
        if self.example is not None:
            remedy = f"Give a prompt such as {self.example!r}"
        return (
            f"{text[:80]!r}: the vocabulary of {name} has no token for "
            f"{', '.join(map(repr, list(unknown)[:8])) or 'a part of it'}. It knows "
            f"{' '.join([*words[:80], *more, *numbers])}"
            f"{' (a space belongs to what follows it)' if spaced else ''}. {remedy}"
        )

    def encode_prompt(self, prompt: str | Messages, *, thinking: bool | None = None) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: plain text, encoded as it is; or chat messages with "role" and "content", which
                go through the chat template and end where the assistant's answer begins. If the
                last message is the assistant's, its content opens that answer: it follows as it is
                and its turn stays open.
            thinking: for chat templates that know reasoning (`enable_thinking`): False closes it
                before the answer begins. None leaves it to the template.

        Raises:
            ValueError: messages are given and there is no chat template for them, or it refuses
                them.
        """
        if isinstance(prompt, str):
            return self.encode(prompt)
        opening: list[int] = []
        if prompt and prompt[-1]["role"] == "assistant":
            opening, prompt = self.encode(prompt[-1]["content"]), prompt[:-1]
        template = self._chat_template()
        try:
            text = self._backend.apply_chat_template(
                prompt,
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
                **({} if thinking is None else {"enable_thinking": thinking}),
            )
        except Exception as error:  # A template may raise anything, by itself or in Jinja.
            roles = ", ".join(message["role"] for message in prompt)
            raise ValueError(
                f"{self._template_file} refuses these messages (roles: {roles}): "
                f"{error}. Change the messages or the template, or give the prompt as plain text"
            ) from error
        return [*self.encode(text), *opening]

    def decode(
        self,
        ids: Sequence[int] | Int[np.ndarray, " L"],
        *,
        skip_special_tokens: bool = True,
        cut_at_eos: bool = True,
    ) -> str:
        """Text of token ids, up to the first of `stop_ids` unless `cut_at_eos` is off.

        Special tokens are left out by default, masks that were never filled among them.
        """
        tokens = [int(token) for token in ids]
        if cut_at_eos:
            stops = (place for place, token in enumerate(tokens) if token in self.stop_ids)
            tokens = tokens[: next(stops, len(tokens))]
        return self._fast.decode(tokens, skip_special_tokens=skip_special_tokens)

    def pieces(self, ids: Sequence[int] | Int[np.ndarray, " L"]) -> list[str]:
        """Text of each token, special ones included, for showing tokens one by one.

        A character that takes several tokens stands with the last of them; the others are empty.
        """
        found: list[str] = []
        group: tuple[int, ...] = ()
        for token in ids:
            group = (*group, int(token))
            if group not in self._pieces:
                self._pieces[group] = self.decode(
                    group, skip_special_tokens=False, cut_at_eos=False
                )
            # A character has at most four bytes; what is no character then never becomes one.
            is_part = self._pieces[group].endswith("\ufffd") and len(group) < 4
            found.append("" if is_part else self._pieces[group])
            group = group if is_part else ()
        if group:
            found[-1] = self._pieces[group]
        return found

    def decode_batch(self, ids: Int[np.ndarray, "B L"]) -> list[str]:
        """`decode` of every row."""
        return list(map(self.decode, np.asarray(ids).tolist()))

    def pad_prompts(
        self, prompts: Sequence[Sequence[int]], length: int, *, truncate: bool = False
    ) -> Prompts:
        """Left-pads encoded prompts to one length.

        Args:
            prompts: token ids of each prompt.
            length: the prompt budget P.
            truncate: keep the last P tokens of a longer prompt, as the published training code
                does, instead of refusing it.

        Returns:
            NumPy int32 tokens [B, P] and bool mask [B, P].

        Raises:
            ValueError: a prompt is longer than the budget and `truncate` is off.
        """
        tokens = np.full((len(prompts), length), self.pad_id, np.int32)
        mask = np.zeros((len(prompts), length), bool)
        for row, prompt in enumerate(prompts):
            if len(prompt) > length and not truncate:
                raise ValueError(
                    f"prompt {row} has {len(prompt)} tokens, more than its budget of {length}; "
                    "raise the prompt length, drop the prompt, or allow truncation (which keeps "
                    "its last tokens)"
                )
            start = max(len(prompt) - length, 0)
            kept = list(prompt[start:])
            first = length - len(kept)
            tokens[row, first:] = kept
            mask[row, first:] = True
        # NumPy on purpose: the caller decides when, and how sharded, they go to a device.
        return Prompts(tokens=tokens, mask=mask)  # type: ignore[arg-type]

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Copies the tokenizer's files and the generation config, unchanged."""
        hub.copy_companions(self.directory, pathlib.Path(directory))

    @property
    def has_chat_template(self) -> bool:
        """Whether it can encode chat messages."""
        try:
            return bool(self._chat_template())
        except ValueError:
            return False

    @property
    def _template_file(self) -> str:
        """The file that holds the chat template."""
        for file in map(self.directory.joinpath, _TEMPLATE_FILES):
            is_json = file.suffix == ".json"
            if file.is_file() and (not is_json or hub.read_json(file).get("chat_template")):
                return str(file)
        more = self.directory / "additional_chat_templates"
        own = f"{self._family.name}'s own chat template" if self._family else str(self.directory)
        return str(more) if more.is_dir() else own

    def _chat_template(self) -> str:
        template = self._backend.chat_template
        old = self.directory / _TEMPLATE_FILES[-1]
        if template is None and old.is_file():
            template = hub.read_json(old).get("chat_template")
        if isinstance(template, dict):  # Several with names.
            if "default" not in template and len(template) > 1:
                raise ValueError(
                    f"{self._template_file} has the chat templates {', '.join(sorted(template))}, "
                    "and none named default; rename one"
                )
            template = template.get("default", next(iter(template.values()), None))
        if template is not None:
            return template
        family = self._family
        if family is None or family.chat_template is None:
            raise ValueError(
                f"the tokenizer in {self.directory} has no chat template; add chat_template.jinja, "
                "or give the prompt as plain text"
            )
        vocabulary = self._backend.get_vocab()
        missing = [token for token in family.template_tokens if token not in vocabulary]
        if missing:
            raise ValueError(
                f"the tokenizer in {self.directory} has no chat template, and lacks "
                f"{', '.join(missing)} of {family.name}'s own; give the prompt as plain text"
            )
        return family.chat_template


def before_stops(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, and whether there is one; empty ones stop nothing.

    >>> before_stops("4 eggs.\\nQ:", ["Q:", "\\n"])
    ('4 eggs.', True)
    """
    found = [text.index(stop) for stop in stops if stop and stop in text]
    return (text[: min(found)], True) if found else (text, False)


def has_tokenizer(directory: pathlib.Path) -> bool:
    """Whether a directory contains the files of a tokenizer."""
    slow = all((directory / name).is_file() for name in _SLOW_FILES)
    return slow or (directory / "tokenizer.json").is_file()


def load_tokenizer(
    path: str | os.PathLike[str], *, needs_mask: bool = True, example: str | None = None
) -> Tokenizer:
    """Loads the tokenizer of a model directory or hub name.

    From `tokenizer.json`, or from the `vocab.json` and `merges.txt` that Dream's models come with.

    The ids of the mask, EOS and padding tokens come from the model's `config.json` and from the
    tokenizer, and have to agree where both give one. Padding falls back to EOS.

    Args:
        path: the directory, or the name.
        needs_mask: without, a tokenizer may have no mask token, and its `mask_id` is -1.
        example: a prompt that the model takes, for errors.

    Raises:
        FileNotFoundError: there is no such directory, or no tokenizer in it.
        ValueError: the tokenizer is not valid, has no mask or EOS token, disagrees with
            `config.json`, or has more tokens than the model has rows.
    """
    directory = hub.local_directory(path, weights=False)
    if not has_tokenizer(directory):
        raise FileNotFoundError(
            f"{directory} holds no tokenizer.json; add the file, or {' and '.join(_SLOW_FILES)} "
            "(another slow tokenizer's files can be converted with transformers' save_pretrained)"
        )
    fields: dict[str, Any] = {}
    if (directory / "config.json").is_file():
        fields = families.complete(hub.read_json(directory / "config.json"))
    _check_companions(directory)
    # It would advise to install PyTorch, which is not needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers  # 2.5 s; nothing else here needs it.

    is_fast = (directory / "tokenizer.json").is_file()
    backend_class = transformers.PreTrainedTokenizerFast if is_fast else transformers.Qwen2Tokenizer
    try:
        backend = backend_class.from_pretrained(directory)
    except Exception as error:  # The Rust tokenizer raises bare Exception for a malformed file.
        file = "tokenizer.json" if is_fast else _SLOW_FILES[0]
        raise ValueError(
            f"{directory / file} cannot be read, or does not fit tokenizer_config.json, "
            f"special_tokens_map.json and added_tokens.json beside it: {error}"
        ) from error

    def token_id(role: str) -> int | None:
        from_config, from_tokenizer = _ids(fields.get(f"{role}_token_id")), None
        if getattr(backend, f"{role}_token") is not None:
            from_tokenizer = getattr(backend, f"{role}_token_id")
        if from_config and from_tokenizer is not None and from_tokenizer not in from_config:
            raise ValueError(
                f"{directory}: {role}_token_id={fields[f'{role}_token_id']} in config.json, but "
                f"the tokenizer's {role}_token {getattr(backend, f'{role}_token')!r} has id "
                f"{from_tokenizer}; correct one of them"
            )
        return from_config[0] if from_config else from_tokenizer

    def required(role: str) -> int:
        found = token_id(role)
        if found is None:
            raise ValueError(
                f"{directory} names no {role} token: set {role}_token_id in config.json or "
                f"{role}_token in tokenizer_config.json"
            )
        return found

    eos, pad = required("eos"), token_id("pad")
    stops = _ids(fields.get("eos_token_id"))
    if (directory / "generation_config.json").is_file():
        stops += _ids(hub.read_json(directory / "generation_config.json").get("eos_token_id"))
    tokenizer = Tokenizer(
        backend,
        directory,
        mask_id=required("mask") if needs_mask else -1,
        eos_id=eos,
        pad_id=eos if pad is None else pad,
        family=families.find(fields),
        stop_ids=[token for token in stops if 0 <= token < len(backend)],
        example=example,
    )
    rows = fields.get("embedding_size") or fields.get("vocab_size")
    if rows is not None and tokenizer.vocab_size > rows:
        raise ValueError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, but the model has only "
            f"{rows} embedding rows (config.json); they do not belong together"
        )
    return tokenizer


def _check_companions(directory: pathlib.Path) -> None:
    """Names a damaged file beside the tokenizer's own, and warns of two chat templates."""
    found: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (directory / name).is_file():
            found |= hub.read_json(directory / name)
    separate, inside = directory / "chat_template.jinja", found.get("chat_template")
    used = inside
    if separate.is_file():
        try:
            used = separate.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{separate} is not UTF-8 text ({error})") from error
    if isinstance(inside, str) and used != inside:
        logger.warning("%s is used; tokenizer_config.json holds another chat template.", separate)


def _ids(value: Any) -> list[int]:
    """Ids of a field that holds one, several or none."""
    return [each for each in (value if isinstance(value, list) else [value]) if type(each) is int]
