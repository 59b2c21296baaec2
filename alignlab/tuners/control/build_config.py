"""From a control's config to its configuration: the classes' phrases as ids, and ids that no text holds as placeholders."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import pre_tokenizers

from alignlab.data.classes import Classes
from alignlab.errors import ConfigError
from alignlab.models.text import Codec
from alignlab.registry import unknown
from alignlab.tuners.control.config import ControlConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEVER_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))
"""Bytes that no text in UTF-8 holds, so a token that stands for one is free."""

_RESERVED = re.compile(r"<\|?(reserved|unused)\w*\|?>|\[unused\d+\]")


class ControlConfigLike(Protocol):
    """What every form's config has; a form adds its own numbers."""

    place: str
    phrases: dict[str, str]

    @property
    def form(self) -> str:
        """text | token | soft_prompt | lora."""

    def phrase_of(self, name: str) -> str:
        """The text that stands for a class."""


def build_config(config: ControlConfigLike, classes: Classes, codec: Codec, rows: int) -> ControlConfig:
    """The configuration of a control. `rows`: of the model's embedding.

    Raises ConfigError for placeholders that lie beyond it, that texts use, or that cannot be found.
    """
    _check_phrases(config, classes, codec)
    return ControlConfig(
        form=config.form,
        classes=list(classes.names),
        behind=len(codec.head) if config.place == "after_bos" else 0,
        phrases=[list(codec.prefix(config.phrase_of(name))) for name in classes.names],
        edges=list(classes.edges),
        template=codec.template_hash,
        **_own(config, len(classes.names), codec, rows),
    )


def free_ids(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[int]:
    """Ids inside an embedding of so many rows that no text is encoded to: rows behind the tokenizer's last token, tokens that
    are called reserved or unused, and bytes that UTF-8 does not have."""
    vocabulary = tokenizer.get_vocab()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # In byte-level vocabularies each of these bytes is written as the character of its number.
    as_characters = {chr(byte) for byte in NEVER_IN_UTF8} if set(alphabet) <= vocabulary.keys() else set()
    bytes_ = as_characters | {f"<0x{byte:02X}>" for byte in NEVER_IN_UTF8}
    behind = range(max(vocabulary.values()) + 1, rows)
    reserved = sorted(index for token, index in vocabulary.items() if _RESERVED.fullmatch(token))
    unused = sorted(index for token, index in vocabulary.items() if token in bytes_ and index not in _encoded(tokenizer, token))
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    found = dict.fromkeys([*behind, *reserved, *unused])
    return [index for index in found if index not in special and index < rows]


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _own(config: Any, classes: int, codec: Codec, rows: int) -> dict[str, Any]:
    """What a form has beside the others."""
    if config.form == "lora":
        own = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout}
        return {**own, "target_modules": list(config.targets) or None}
    if config.form == "text":
        return {}
    found = config.placeholders or free_ids(codec.tokenizer, rows)[:classes]
    _check(found, classes, codec, rows)
    return {"length": config.length, "init": config.init, "placeholders": list(found)}


def _check_phrases(config: ControlConfigLike, classes: Classes, codec: Codec) -> None:
    lost = [name for name in config.phrases if name not in classes.names]
    if lost:
        raise ConfigError(unknown("class in control.phrases", lost[0], classes.names))
    texts = [config.phrase_of(name) for name in classes.names]
    if not all(codec.prefix(text) for text in texts) or len(set(texts)) < len(texts):
        raise ConfigError(f"control.phrases: {texts} must be texts that differ from class to class, and none of them empty.")


def _check(placeholders: list[int], classes: int, codec: Codec, rows: int) -> None:
    beyond = [index for index in placeholders if not 0 <= index < rows]
    if beyond:
        raise ConfigError(
            f"control.placeholders: {beyond[0]} lies beyond the vocabulary of {rows}; give unused ids below that."
        )
    if len(placeholders) < classes:
        raise ConfigError(
            f"a control in the text needs an unused id for each of {classes} classes, and this vocabulary has"
            f" {len(placeholders)}; give control.placeholders, or take control=lora or control=text, which need none."
        )
    if {codec.eos, codec.pad, *codec.head} & set(placeholders):
        raise ConfigError(f"control.placeholders={placeholders} holds BOS, EOS or the padding; give ids that no text uses.")
    free = free_ids(codec.tokenizer, rows)
    for index in placeholders:
        text = str(codec.tokenizer.decode([index]))
        if index not in free and _encoded(codec.tokenizer, text) == [index]:
            raise ConfigError(f"control.placeholders: {index} stands for {text!r} in texts; give ids that no text uses.")
