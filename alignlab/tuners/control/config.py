"""A control adapter's configuration: its form, its classes, and where each stands in a text.

`build_config` makes one of the run's config: phrases become ids, and ids that no text holds become placeholders.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft import PeftConfig
from tokenizers import pre_tokenizers

from alignlab.data.classes import Classes
from alignlab.errors import ConfigError
from alignlab.models.strength import Controls, Prefix
from alignlab.models.text import Codec
from alignlab.registry import unknown
from alignlab.tuners.config import FORMS, STARTS_OF_PROMPTS
from alignlab.tuners.peft_tuner import peft_type

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEVER_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))
"""Bytes that no text in UTF-8 holds, so a token that stands for one is free."""

_RESERVED = re.compile(r"<\|?(reserved|unused)\w*\|?>|\[unused\d+\]")


@dataclass
class ControlConfig(PeftConfig):
    """The configuration of a control adapter.

    Raises:
        ConfigError: a form or a start that does not exist, or lists that do not have an entry per class.
    """

    form: str = field(default="soft_prompt", metadata={"help": "text, token, soft_prompt or lora."})
    classes: list[str] = field(
        default_factory=lambda: ["good", "bad"], metadata={"help": "Best first, where there is an order."}
    )
    behind: int = field(default=1, metadata={"help": "Tokens of a text in front of the control: 1 where it begins with BOS."})
    length: int = field(default=20, metadata={"help": "Vectors per class of a soft prompt."})
    placeholders: list[int] = field(
        default_factory=list, metadata={"help": "An id per class that no text holds, for a token or a soft prompt."}
    )
    init: str = field(default="random", metadata={"help": "How vectors start: text, vocabulary or random."})
    phrases: list[list[int]] = field(
        default_factory=list, metadata={"help": "Ids of a phrase per class: a text control, or where vectors start."}
    )
    rank: int = field(default=8, metadata={"help": "Rank of each class's LoRA."})
    alpha: float = field(default=16.0, metadata={"help": "LoRA's scale is alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the LoRA."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Linear maps with a LoRA; None: queries and values, from peft's table."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules beside the control that are trained and saved."}
    )
    edges: list[float] = field(default_factory=list, metadata={"help": "Scores that divide the classes, falling."})
    template: str | None = field(default=None, metadata={"help": "Hash of the template that prompts were written with."})
    base_hash: str | None = field(default=None, metadata={"help": "Hash of the weights that the control was tuned with."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type("CONTROL")
        if self.form not in FORMS:
            raise ConfigError(unknown("form of a control", self.form, FORMS))
        if self.init not in STARTS_OF_PROMPTS:
            raise ConfigError(unknown("start of a control", self.init, STARTS_OF_PROMPTS))
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise ConfigError(f"a control needs at least two classes, each once; got {self.classes}.")
        for name, wanted in (("placeholders", self.embeds), ("phrases", self.form == "text" or self.starts_from_phrases)):
            given = getattr(self, name)
            if wanted and len(given) != len(self.classes):
                raise ConfigError(f"a {self.form} control needs {name}, one per class: {len(given)} for {len(self.classes)}.")

    @property
    def embeds(self) -> bool:
        """Whether vectors are put in place of placeholder ids."""
        return self.form in ("token", "soft_prompt")

    @property
    def starts_from_phrases(self) -> bool:
        """Whether vectors start as the embeddings of phrases."""
        return self.embeds and self.init == "text"

    @property
    def controls(self) -> Controls:
        """The classes as a model is asked for them."""
        if self.form == "lora":
            prefixes: list[tuple[int, ...]] = [()] * len(self.classes)
        elif self.form == "text":
            prefixes = [tuple(ids) for ids in self.phrases]
        else:
            prefixes = [(placeholder,) * self.length for placeholder in self.placeholders]
        return Controls(
            names=tuple(self.classes),
            prefixes=tuple(Prefix(ids, self.behind) for ids in prefixes),
            reserved=tuple(self.placeholders) if self.embeds else (),
            template=self.template,
        )


def build_config(config: Any, classes: Classes, codec: Codec, rows: int) -> ControlConfig:
    """The configuration of a control. `config`: the run's, of any form; `rows`: of the model's embedding.

    Raises ConfigError for placeholders that lie beyond it, that texts use, or that cannot be found.
    """
    _check_phrases(config, classes, codec)
    more: dict[str, Any] = {}
    if config.form == "lora":
        more = {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout}
        more["target_modules"] = list(config.targets) or None
    elif config.form != "text":
        placeholders = list(config.placeholders or free_ids(codec.tokenizer, rows)[: len(classes.names)])
        _check_placeholders(placeholders, len(classes.names), codec, rows)
        more = {"length": config.length, "init": config.init, "placeholders": placeholders}
    return ControlConfig(
        form=config.form,
        classes=list(classes.names),
        behind=len(codec.head) if config.place == "after_bos" else 0,
        phrases=[list(codec.prefix(config.phrase_of(name))) for name in classes.names],
        edges=list(classes.edges),
        template=codec.template_hash,
        **more,
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


def _check_phrases(config: Any, classes: Classes, codec: Codec) -> None:
    lost = [name for name in config.phrases if name not in classes.names]
    if lost:
        raise ConfigError(unknown("class in control.phrases", lost[0], classes.names))
    texts = [config.phrase_of(name) for name in classes.names]
    if not all(codec.prefix(text) for text in texts) or len(set(texts)) < len(texts):
        raise ConfigError(f"control.phrases: {texts} must be texts that differ from class to class, and none of them empty.")


def _check_placeholders(placeholders: list[int], classes: int, codec: Codec, rows: int) -> None:
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
