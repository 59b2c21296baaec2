"""Text to ids and back, with one BOS at most and exactly one EOS per response."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignlab.errors import ConfigError, DataError
from alignlab.records import Encoded, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Template:
    """How a prompt is written for a backbone: a format with one `{prompt}`, or the tokenizer's own chat template."""

    format: str
    chat: bool
    bos: bool

    def render(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The prompt as the model reads it, without BOS."""
        if not self.chat:
            return self.format.replace("{prompt}", prompt)
        turns = [{"role": "user", "content": prompt}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        bos = tokenizer.bos_token
        return text[len(bos) :] if bos and self.bos and text.startswith(bos) else text


class Codec:
    """A tokenizer and a template. Special tokens are added here and by nobody else. `predicts_prompt`: whether the prompt is
    part of what the model predicts, so that it can count in a loss."""

    predicts_prompt = True

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

    def prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of each prompt as the model reads it, BOS included where the template asks for it."""
        texts = [self.template.render(prompt, self.tokenizer) for prompt in prompts]
        return [(*self.head, *ids) for ids in self._ids(texts)]

    def examples(self, examples: Sequence[Example], rows: Sequence[str]) -> list[Encoded]:
        """Ids of each prompt and response, with EOS behind the response.

        Prompt and response are tokenised as one string. The prompt ends where the ids of the prompt alone stop agreeing, so
        a token that straddles the boundary belongs to the response, and `moved` says so. Raises DataError, with the row,
        for an empty response and for special tokens written out in the text.
        """
        rendered = [self.template.render(example.prompt, self.tokenizer) for example in examples]
        leads = {text: self.lead(text) for text in {example.lead for example in examples}}
        for text, ids in leads.items():
            if not self._special.isdisjoint(ids):
                raise DataError(f"the prefix {text!r} holds a BOS or EOS token as text; remove it, alignlab adds its own.")
        alone = self._ids(rendered)
        joined = self._ids([text + example.response for text, example in zip(rendered, examples, strict=True)])
        return [
            self._encoded(prompt, both, example, row, leads[example.lead])
            for prompt, both, example, row in zip(alone, joined, examples, rows, strict=True)
        ]

    @property
    def template_hash(self) -> str:
        """Changes with anything that changes how a prompt is written."""
        words = [vars(self.template), self.tokenizer.chat_template if self.template.chat else None]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]

    def lead(self, text: str) -> tuple[int, ...]:
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

    def _encoded(self, prompt: list[int], both: list[int], example: Example, row: str, lead: tuple[int, ...]) -> Encoded:
        if not example.response.strip():
            raise DataError(f"{row}: the response is empty; remove the row or give it a response.")
        cut = _common(prompt, both)
        if not self._special.isdisjoint(both[cut:]):
            raise DataError(f"{row}: the response holds a BOS or EOS token as text; remove it, alignlab adds its own.")
        if not set(self.head).isdisjoint(both[:cut]):
            raise DataError(f"{row}: the prompt holds a second BOS; remove it or set model.template.bos=false.")
        before = (*self.head, *lead)
        ids = (*before, *both, self.eos)
        return Encoded(ids, len(before) + cut, moved=cut < len(prompt), control=example.control, head=len(before))


def _common(left: list[int], right: list[int]) -> int:
    """The length of the longest common prefix."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
