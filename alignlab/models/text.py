"""Text to ids and back, with one BOS at most and exactly one end per response: EOS, or the chat template's own end of turn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError, DataError, ModelError, UnusableRowError
from alignlab.models.chat import ANSWER, Chat
from alignlab.records import Encoded, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignlab.records import LabelSet

Text = str | tuple[str, str]
"""What a classifier reads: one text, or a pair of them."""


@dataclass(frozen=True)
class Template:
    """How a prompt is written for a backbone: a format with one `{prompt}`, or the tokenizer's own `chat` template, which gets
    `arguments`. `bos`: whether BOS stands in front; None = as the chat template has it, or the tokenizer by itself."""

    format: str
    chat: bool
    bos: bool | None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def chat_of(self, tokenizer: PreTrainedTokenizerBase) -> Chat | None:
        """The chat template, where prompts are written by it."""
        if not self.chat:
            return None
        if not tokenizer.chat_template:
            raise ConfigError("template.chat is true but the tokenizer has no chat template; set model.template.chat=false.")
        return Chat(tokenizer, self.arguments)


PROBES = ("The", "a", "I", "7", "(", '"', "-", "é")
"""Openings of responses: where one of them changes the ids of a prompt that ends in white space, that white space is moved."""
ANCHORS = ("\n", ":", "a")
"""Texts in front of which a response is tokenised apart from its prompt; the first whose ids it leaves alone is taken."""


class Codec:
    """A tokenizer and a template. Only this class adds special tokens.

    Generation starts from the ids of training: the ids of a prompt are the same alone and in front of every response. White
    space at the end of a prompt that a tokenizer joins with what follows (`Assistant: ` and ` The`) therefore belongs to the
    response: it is no part of the prompt, it is trained in front of the response, and `answer` removes it. So does what a chat
    template writes around an answer, of which the end of its turn is trained in the place of EOS. `predicts_prompt`: whether
    the prompt is part of what the model predicts, so that it can count in a loss. `ends`: the ids that end a response; `stop`:
    the texts that do, where a chat template ends a turn with a text. `end_tokens`: how many ids of an example are that end.
    """

    predicts_prompt = True
    labels: LabelSet | None = None
    """The classes that a head has a place for; None where no head scores classes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no EOS token, so no response could end; set eos_token in its config.")
        if template.bos and tokenizer.bos_token_id is None:
            raise ConfigError("template.bos is true but the tokenizer has no BOS token; set model.template.bos=false.")
        self.tokenizer = tokenizer
        self.chat = template.chat_of(tokenizer)
        by_itself = self.chat.bos if self.chat else adds_bos(tokenizer)
        self.template = replace(template, bos=by_itself if template.bos is None else template.bos)
        self.eos = int(tokenizer.eos_token_id)
        self.head = (int(tokenizer.bos_token_id),) if self.template.bos else ()
        self.pad = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else self.eos
        end = tokenizer.get_vocab()[self.chat.end] if self.chat and self.chat.end else self.eos
        self.ends = tuple(dict.fromkeys((self.eos, end)))
        self.stop = self.chat.stop if self.chat else ()
        self.end_tokens = 1
        if self.chat and (closed := self.chat.closing + self.chat.end):
            alone, ended = self._ids([ANSWER.text, ANSWER.text + closed])
            self.end_tokens = len(ended) - len(alone)
        self._special = {self.eos, *self.head}
        self._kept: dict[str, int] = {}

    def texts(self, texts: Sequence[Text]) -> list[Encoded]:
        """Ids of texts to classify. Raises ModelError where no head does that."""
        del texts
        raise ModelError("this model predicts tokens and no classes; call respond, or take a classifier.")

    def prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of each prompt as the model reads it, BOS included where the template asks for it."""
        texts = [self._divided(self.written(prompt))[0] for prompt in prompts]
        return [(*self.head, *ids) for ids in self._ids(texts)]

    def askable(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that the template takes; a chat template may refuse some."""
        return [prompt for prompt in prompts if self.chat is None or self.chat.takes(prompt)]

    def written(self, prompt: str, row: str = "") -> str:
        """The prompt as the model reads it, without BOS; a chat template gets every turn of a dialogue."""
        return self.chat.prompt(prompt, row) if self.chat else self.template.format.replace("{prompt}", prompt)

    def examples(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """Ids of each prompt, as `prompts` has them, then of the response, with EOS or the end of its turn behind it.

        Both are tokenised as one string. A response that would change the ids of its prompt, as `lo` behind `hel` may, is
        tokenised apart, and `moved` says so. Raises UnusableRowError for an empty response and for special tokens written out
        in the text, DataError for such a prefix and for a second text.
        """
        for example, row in zip(examples, rows, strict=True):
            if example.second is not None:
                raise DataError(
                    f"{row}: has two texts, and a causal language model reads one prompt; join them in one column"
                    " (data.second=null), or take a classifier or an encoder-decoder model."
                )
        prefixes = {text: self.prefix(text) for text in {example.prefix for example in examples}}
        for text, ids in prefixes.items():
            if not self._special.isdisjoint(ids):
                raise DataError(f"the prefix {text!r} holds a BOS or EOS token as text; remove it, alignlab adds its own.")
        divided = [self._divided(self.written(each.prompt, row)) for each, row in zip(examples, rows, strict=True)]
        answered = [
            space + (self.chat.response(each.prompt, each.response, row) if self.chat else each.response)
            for (_, space), each, row in zip(divided, examples, rows, strict=True)
        ]
        alone = self._ids([text for text, _ in divided])
        joined = self._ids([text + answer for (text, _), answer in zip(divided, answered, strict=True)])
        return [
            self._encoded(prompt, both, answer, example, row, prefixes[example.prefix])
            for prompt, both, answer, example, row in zip(alone, joined, answered, examples, rows, strict=True)
        ]

    def answer(self, prompt: str, continuation: str) -> str:
        """A generated text as the response to its prompt: without the white space that was moved from the prompt to the
        response, and without what a chat template writes around it."""
        left = len(self._divided(self.written(prompt))[1])
        opening = len(continuation) - len(continuation.lstrip())
        text = continuation[min(left, opening) :]  # counted, since some tokenizers write all white space as spaces
        if self.chat and self.chat.opening:
            text = text.removeprefix(self.decode(self._ids([self.chat.opening])[0]))
        return text.removesuffix(self.chat.closing) if self.chat else text

    def shown(self, encoded: Encoded) -> tuple[str, str]:
        """A row with its special tokens visible: what stands in front of the trained part, and that part."""
        before, whole = (
            str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for ids in (encoded.ids[: encoded.start], encoded.ids)
        )
        return before, whole[len(before) :]

    @property
    def template_hash(self) -> str:
        """Changes with anything that changes how a prompt is written, what a chat template prints by itself included."""
        plain = {"format": self.template.format, "chat": self.template.chat, "bos": self.template.bos}
        words = [plain, self.chat.key() if self.chat else None]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]

    def prefix(self, text: str) -> tuple[int, ...]:
        """Ids of a text by itself, no special tokens added."""
        return tuple(self._ids([text])[0]) if text else ()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """The text that some new ids add to a prompt. Tokenizers that mark spaces drop a leading one when decoded alone."""
        before = self.decode(prompt)
        whole = self.decode([*prompt, *ids])
        return whole[len(before) :] if whole.startswith(before) else self.decode(ids)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])

    def _divided(self, text: str) -> tuple[str, str]:
        """The text of a written prompt, and the white space of its end that belongs to the response."""
        bare = len(text.rstrip())
        if bare in (0, len(text)):
            return text, ""
        tail = text[bare - 1 :]
        if tail not in self._kept:
            self._kept[tail] = self._stable(tail)
        end = bare - 1 + self._kept[tail]
        return text[:end], text[end:]

    def _stable(self, tail: str) -> int:
        """How much of a character and the white space behind it has ids that no probe changes: all, all but the last, or none
        of the white space."""
        joined = self._ids([tail + probe for probe in PROBES])
        for count in (len(tail), len(tail) - 1):
            (alone,) = self._ids([tail[:count]])
            if all(ids[: len(alone)] == alone for ids in joined):
                return count
        return 1

    def _encoded(
        self, prompt: list[int], both: list[int], answer: str, example: Example, row: str, prefix: tuple[int, ...]
    ) -> Encoded:
        if not example.response.strip():
            raise empty(row, "response")
        moved = both[: len(prompt)] != prompt
        response = self._apart(answer) if moved else both[len(prompt) :]
        if self.chat is None and not self._special.isdisjoint(response):  # a chat template's own tokens are looked for as text
            raise special(row, "the response holds a BOS or EOS token as text; remove it, alignlab adds its own.")
        if self.chat is None and not set(self.head).isdisjoint(prompt):
            raise special(row, "the prompt holds a second BOS; remove it or set model.template.bos=false.")
        before = (*self.head, *prefix)
        written = self.chat is not None and bool(self.chat.end or self.chat.stop)
        ids = (*before, *prompt, *response, *(() if written else (self.eos,)))
        return Encoded(ids, len(before) + len(prompt), moved=moved, control=example.control, head=len(before))

    def _apart(self, answer: str) -> list[int]:
        """Ids of a response by itself. Tokenizers may treat the start of a text in a way of their own, so it is no start."""
        for anchor in ANCHORS:
            alone, both = self._ids([anchor, anchor + answer])
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return self._ids([answer])[0]


def empty(row: str, what: str) -> UnusableRowError:
    """The error of a row without a text, or without a response."""
    return UnusableRowError(f"{row}: the {what} is empty; remove the row or give it a {what}.", f"an empty {what}")


def special(row: str, sentence: str) -> UnusableRowError:
    """The error of a row whose text would be read as a special token."""
    return UnusableRowError(f"{row}: {sentence}", "a special token written out in the text")


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a", verbose=False)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
