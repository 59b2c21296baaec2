"""Small tokenizers with chat templates as those of known models write them, and where each of them ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from alignlab.models.text import Codec, Template
from alignlab.records import Turn

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}"
    "{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] | trim }}{%- set messages = messages[1:] %}"
    "{%- endif %}"
    "{{- '<|eot_id|>' }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = (
    "{%- for m in messages %}{%- if m.role == 'assistant' and loop.last %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m.content.lstrip('\n') + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '### Response:\n' + m['content'] + '\n### End\n\n' }}"
    "{% else %}{{ '### Instruction:\n' + m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ {'user': 'Q: ', 'assistant': 'A: ', 'system': 'S: '}[m['role']] + m['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
SMOLLM3 = CHATML.replace("{% for", "{{ 'Today is ' + strftime_now('%d %B %Y') + '.\n' }}{% for", 1)
REASONER = (
    "{% for m in messages %}{{ ('<A>' if m['role'] == 'assistant' else '<U>') + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """A template with its tokens. `end`: the text that ends a turn as the template writes it; empty: the template writes none,
    and EOS is put there. `trims`: whether white space around what is said goes."""

    template: str
    tokens: tuple[str, ...]
    eos: str
    end: str
    bos: str | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return tokenizer(self.template, self.tokens, self.eos, self.bos)

    def codec(self) -> Codec:
        return Codec(self.tokenizer(), Template("{prompt}", chat=True, bos=None, arguments=dict(self.arguments)))

    def ids(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """Of turns whose last is an answer: what is asked, and what is learned behind it, by apply_chat_template alone."""
        made, arguments = self.tokenizer(), dict(self.arguments)
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        asked = made.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False, **arguments)
        text = made.apply_chat_template(messages, tokenize=False, **arguments)
        text = text[: text.rindex(self.end) + len(self.end)] if self.end else text.removesuffix("\n") + self.eos
        whole = made(text, add_special_tokens=False)["input_ids"]
        assert whole[: len(asked)] == asked
        return asked, whole[len(asked) :]


def tokenizer(template: str, tokens: Sequence[str], eos: str, bos: str | None) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the special ones."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys((*tokens, eos, *filter(None, [bos])))])
    given = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, **({"bos_token": bos} if bos else {}))
    given.chat_template = template
    return given


IM = ("<|im_start|>", "<|im_end|>")
CASES = {
    "smollm2": Case(CHATML, IM, eos="<|im_end|>", end="<|im_end|>", bos="<|im_start|>"),
    "qwen2.5": Case(CHATML, IM, eos="<|endoftext|>", end="<|im_end|>"),
    "gemma": Case(GEMMA, ("<start_of_turn>", "<end_of_turn>"), eos="<eos>", end="<end_of_turn>", bos="<bos>"),
    "llama3": Case(
        LLAMA3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        eos="<|end_of_text|>",
        end="<|eot_id|>",
        bos="<|begin_of_text|>",
        arguments=(("date_string", "26 Jul 2024"),),
    ),
    "phi3": Case(PHI3, ("<|user|>", "<|assistant|>", "<|end|>"), eos="<|endoftext|>", end="<|end|>", bos="<s>"),
    "qwen3": Case(QWEN3, (*IM, "<think>", "</think>"), eos="<|im_end|>", end="<|im_end|>"),
    "qwen3, no thoughts": Case(
        QWEN3, (*IM, "<think>", "</think>"), eos="<|im_end|>", end="<|im_end|>", arguments=(("enable_thinking", False),)
    ),
    "llama2": Case(LLAMA2, (), eos="</s>", end="</s>", bos="<s>"),
    "zephyr": Case(ZEPHYR, ("<|user|>", "<|assistant|>"), eos="</s>", end="</s>", bos="<s>"),
    "alpaca": Case(ALPACA, (), eos="</s>", end="\n### End"),
    "bare": Case(BARE, (), eos="</s>", end=""),
}
