"""Text to ids and back, with one BOS at most and exactly one EOS per response."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from alignlab.errors import ConfigError, DataError, ModelError
from alignlab.records import Dialogue, Encoded, Example, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignlab.records import LabelSet

Text = str | tuple[str, str]
"""What a classifier reads: one text, or a pair of them."""


@dataclass(frozen=True)
class Template:
    """How a prompt is written for a backbone: a format with one `{prompt}`, or the tokenizer's own chat template."""

    format: str
    chat: bool
    bos: bool

    def render(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The prompt as the model reads it, without BOS; a chat template gets every turn of a dialogue."""
        if not self.chat:
            return self.format.replace("{prompt}", prompt)
        given = prompt.turns if isinstance(prompt, Dialogue) else (Turn("user", prompt),)
        turns = [{"role": turn.role, "content": turn.text} for turn in given]
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in given)
            raise DataError(
                f"the tokenizer's chat template refuses a prompt of {roles} ({' '.join(str(error).split())}); leave such rows"
                " out, or set model.template.chat=false."
            ) from error
        bos = tokenizer.bos_token
        return text[len(bos) :] if bos and self.bos and text.startswith(bos) else text


PROBES = ("The", "a", "I", "7", "(", '"', "-", "é")
"""Openings of responses: where one of them changes the ids of a prompt that ends in white space, that white space is moved."""
ANCHORS = ("\n", ":", "a")
"""Texts in front of which a response is tokenised apart from its prompt; the first whose ids it leaves alone is taken."""


class Codec:
    """A tokenizer and a template. Only this class adds special tokens.

    Generation starts from the ids of training: the ids of a prompt are the same alone and in front of every response. White
    space at the end of a prompt that a tokenizer joins with what follows (`Assistant: ` and ` The`) therefore belongs to the
    response: it is no part of the prompt, it is trained in front of the response, and `answer` removes it. `predicts_prompt`:
    whether the prompt is part of what the model predicts, so that it can count in a loss.
    """

    predicts_prompt = True
    labels: LabelSet | None = None
    """The classes that a head has a place for; None where no head scores classes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no EOS token, so no response could end; set eos_token in its config.")
        if template.bos and tokenizer.bos_token_id is None:
            raise ConfigError("template.bos is true but the tokenizer has no BOS token; set model.template.bos=false.")
        if template.chat and not tokenizer.chat_template:
            raise ConfigError("template.chat is true but the tokenizer has no chat template; set model.template.chat=false.")
        self.tokenizer = tokenizer
        self.template = template
        self.eos = int(tokenizer.eos_token_id)
        self.head = (int(tokenizer.bos_token_id),) if template.bos else ()
        self.pad = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else self.eos
        self._special = {self.eos, *self.head}
        self._kept: dict[str, int] = {}

    def texts(self, texts: Sequence[Text]) -> list[Encoded]:
        """Ids of texts to classify. Raises ModelError where no head does that."""
        del texts
        raise ModelError("this model predicts tokens and no classes; call respond, or take a classifier.")

    def prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of each prompt as the model reads it, BOS included where the template asks for it."""
        texts = [self._divided(prompt)[0] for prompt in prompts]
        return [(*self.head, *ids) for ids in self._ids(texts)]

    def examples(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """Ids of each prompt, as `prompts` has them, then of the response, with EOS behind it.

        Both are tokenised as one string. A response that would change the ids of its prompt, as `lo` behind `hel` may, is
        tokenised apart, and `moved` says so. Raises DataError, with the row, for an empty response and for special tokens
        written out in the text.
        """
        prefixes = {text: self.prefix(text) for text in {example.prefix for example in examples}}
        for text, ids in prefixes.items():
            if not self._special.isdisjoint(ids):
                raise DataError(f"the prefix {text!r} holds a BOS or EOS token as text; remove it, alignlab adds its own.")
        divided = [self._divided(example.prompt) for example in examples]
        answered = [space + self._response(example) for (_, space), example in zip(divided, examples, strict=True)]
        alone = self._ids([text for text, _ in divided])
        joined = self._ids([text + answer for (text, _), answer in zip(divided, answered, strict=True)])
        return [
            self._encoded(prompt, both, answer, example, row, prefixes[example.prefix])
            for prompt, both, answer, example, row in zip(alone, joined, answered, examples, rows, strict=True)
        ]

    def answer(self, prompt: str, continuation: str) -> str:
        """A generated text as the response to its prompt: without the white space that was moved from the prompt to the
        response."""
        left = len(self._divided(prompt)[1])
        opening = len(continuation) - len(continuation.lstrip())
        return continuation[min(left, opening) :]  # counted, since some tokenizers write all white space as spaces

    def _response(self, example: Example) -> str:
        """The response as it is trained: under a chat template without the space that a plain dialogue has before it."""
        written = self.template.chat and isinstance(example.prompt, Dialogue) and example.prompt.endswith(":")
        return example.response.removeprefix(" ") if written else example.response

    @property
    def template_hash(self) -> str:
        """Changes with anything that changes how a prompt is written."""
        words = [vars(self.template), self.tokenizer.chat_template if self.template.chat else None]
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

    def _divided(self, prompt: str) -> tuple[str, str]:
        """The text of a prompt, and the white space of its end that belongs to the response."""
        text = self.template.render(prompt, self.tokenizer)
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
            raise DataError(f"{row}: the response is empty; remove the row or give it a response.")
        moved = both[: len(prompt)] != prompt
        response = self._apart(answer) if moved else both[len(prompt) :]
        if not self._special.isdisjoint(response):
            raise DataError(f"{row}: the response holds a BOS or EOS token as text; remove it, alignlab adds its own.")
        if not set(self.head).isdisjoint(prompt):
            raise DataError(f"{row}: the prompt holds a second BOS; remove it or set model.template.bos=false.")
        before = (*self.head, *prefix)
        ids = (*before, *prompt, *response, self.eos)
        return Encoded(ids, len(before) + len(prompt), moved=moved, control=example.control, head=len(before))

    def _apart(self, answer: str) -> list[int]:
        """Ids of a response by itself. Tokenizers may treat the start of a text in a way of their own, so it is no start."""
        for anchor in ANCHORS:
            alone, both = self._ids([anchor, anchor + answer])
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return self._ids([answer])[0]
