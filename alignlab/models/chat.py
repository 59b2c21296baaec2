"""A tokenizer's own chat template: conversations as text, and what it writes around an answer, found by trying it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateSyntaxError, meta

from alignlab.data.rows import EMPTY, TURN, said, spoken
from alignlab.errors import ConfigError, UnusableRowError
from alignlab.records import Dialogue, Turn
from alignlab.registry import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = Turn("user", "Which of the two is it?")
ANSWER = Turn("assistant", "It is neither of them.")
PROBES = ((QUESTION,), (Turn("system", "Answer the question."), QUESTION))
"""Prompts that a template is tried with; one of them it has to take."""
DATE = "date_string"
"""The argument under which templates take a date."""
CLOCK = "{% macro strftime_now(format) %}DATE{% endmacro %}\n"
"""In front of a template, this is the date that it prints. Its line break goes, since chat templates are read with
trim_blocks."""
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Tags around what an assistant says, which transformers adds to the language."""
REFUSED, OWN_MARKUP = "the chat template refuses its turns", "its texts have markup of their own"
"""Reasons for which a row is none for a chat template."""
ASIDE = "or set model.template.chat=false."


class Chat:
    """A template with its arguments. `bos`: whether it begins a text with the tokenizer's BOS, which it then has nowhere else.
    `opening`: what it writes between the generation prompt and an answer, such as an empty block of thoughts; `closing`:
    between an answer and the token that ends the turn, `end`; where it writes no such token, `closing` is the text that ends
    the turn, white space aside, and `end` is empty.

    Raises ConfigError for a template that cannot be read, that takes neither of the probes, that prints the date and is given
    none, and for arguments that it does not name.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
        self._tokenizer, self._arguments = tokenizer, dict(arguments)
        self._template = _template_of(tokenizer)
        self._refuse_unknown_arguments()
        self._probes = self._taken_probes()
        self._set_clock()
        asked, whole = self._rendered(self._probes[0], asked=True), self._rendered((*self._probes[0], ANSWER), asked=False)
        question, place = asked.rfind(QUESTION.text), whole.rfind(ANSWER.text)
        if question < 0 or place < 0:
            raise ConfigError(f"the tokenizer's chat template does not write what is said; mend it, {ASIDE}")
        bos = str(tokenizer.bos_token or "")
        self.bos = bool(bos) and asked.startswith(bos) and asked.count(bos) == 1
        self.opening, self._objection = _opening(asked, whole[:place])
        self._behind = whole[place + len(ANSWER.text) :]
        self.closing, self.end = _end(self._behind, tokenizer)
        self._own = tuple(filter(None, (asked[question + len(QUESTION.text) :].rstrip(), bos, self.end)))
        self._reserved = tuple(filter(None, dict.fromkeys((bos, str(tokenizer.eos_token or ""), self.end))))

    @property
    def stop(self) -> tuple[str, ...]:
        """The text that ends a turn, where no token does."""
        return (self.closing,) if self.closing and not self.end else ()

    def takes(self, prompt: str) -> bool:
        """Whether it can be asked."""
        try:
            self.prompt(prompt)
        except UnusableRowError:
            return False
        return True

    def prompt(self, prompt: str, row: str = "") -> str:
        """A prompt as text, every turn of it, without BOS. Raises UnusableRowError for one that the template refuses, or
        that is marked up already."""
        return self._bare(self._said(self._turns(prompt, row), row, asked=True))

    def response(self, prompt: str, response: str, row: str) -> str:
        """What is trained behind a prompt: the answer as the template writes it, up to the end of its turn.

        Raises ConfigError for a template whose answers do not stand behind its generation prompt, and UnusableRowError for
        a response that the template cannot end.
        """
        if self._objection:
            raise ConfigError(self._objection)
        turns = self._turns(prompt, row)
        asked = self._bare(self._said(turns, row, asked=True))
        whole = self._bare(self._said((*turns, Turn("assistant", self.answer(prompt, response, row))), row, asked=False))
        if not whole.startswith(asked) or not whole.endswith(self._behind):
            raise UnusableRowError(
                f"{row}: the chat template writes this answer in another way than others; leave the row out, {ASIDE}", REFUSED
            )
        return whole[len(asked) : len(whole) - len(self._behind) + len(self.closing) + len(self.end)]

    def answer(self, prompt: str, response: str, row: str) -> str:
        """A response as the assistant's turn. Raises UnusableRowError for one that is empty, is marked up, or holds a token
        of the template as text."""
        text = said(prompt, response)
        if not text.strip():
            raise UnusableRowError(f"{row}: the response is empty; remove the row or give it a response.", EMPTY)
        for token in self._reserved:
            if token in text:
                raise UnusableRowError(
                    f"{row}: the response holds {token!r} as text, which begins or ends a turn; remove it.", OWN_MARKUP
                )
        named = text.lstrip().startswith("Assistant:") or TURN.search(text)
        if named and not isinstance(prompt, Dialogue) and not spoken(prompt):
            raise UnusableRowError(f"{row}: {_marked_up('the response')}", OWN_MARKUP)
        return text

    def key(self) -> list[str]:
        """What the template writes for the probes: it changes with its text, its arguments, and whatever else it prints."""
        return [self._template, *self._outputs(self._template)]

    def _turns(self, prompt: str, row: str) -> tuple[Turn, ...]:
        where = f"{row}: " if row else ""
        turns = prompt.turns if isinstance(prompt, Dialogue) else spoken(prompt)
        if not turns:
            if TURN.search(f"\n\n{prompt.lstrip()}"):
                raise UnusableRowError(where + _marked_up("the prompt"), OWN_MARKUP)
            turns = (Turn("user", prompt),)
        for own in self._own:
            if any(own in turn.text for turn in turns):
                raise UnusableRowError(
                    f"{where}the prompt holds {own!r} as text, which the chat template writes itself; give the bare question"
                    f" or its messages, {ASIDE}",
                    OWN_MARKUP,
                )
        return turns

    def _bare(self, text: str) -> str:
        return text.removeprefix(str(self._tokenizer.bos_token)) if self.bos else text

    def _said(self, turns: Sequence[Turn], row: str, *, asked: bool) -> str:
        try:
            return self._rendered(turns, asked=asked)
        except ConfigError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise UnusableRowError(
                f"{f'{row}: ' if row else ''}the tokenizer's chat template refuses a {'prompt' if asked else 'conversation'} of"
                f" {roles} ({error}); leave such rows out, {ASIDE}",
                REFUSED,
            ) from error

    def _rendered(self, turns: Sequence[Turn], *, asked: bool, template: str | None = None) -> str:
        """A conversation as text. Raises ConfigError, its message the reason, for one that the template refuses."""
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        given = {"chat_template": template or self._template, "add_generation_prompt": asked, **self._arguments}
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **given))
        except Exception as error:  # a template is a program of somebody else's, and may fail in any way
            raise ConfigError(" ".join(str(error).split())) from error

    def _outputs(self, template: str) -> list[str]:
        return [self._rendered(probe, asked=True, template=template) for probe in self._probes]

    def _taken_probes(self) -> list[tuple[Turn, ...]]:
        taken: list[tuple[Turn, ...]] = []
        reasons: list[str] = []
        for probe in PROBES:
            try:
                self._rendered(probe, asked=True)
                self._rendered((*probe, ANSWER), asked=False)
                taken.append(probe)
            except ConfigError as error:
                reasons.append(str(error))
        if not taken:
            raise ConfigError(
                f"the tokenizer's chat template refuses a question with its answer ({reasons[0]}); mend it, {ASIDE}"
            )
        return taken

    def _set_clock(self) -> None:
        """A template that prints the day's date gets the one that is given instead."""
        if "strftime_now" not in self._template:
            return
        one, other = (self._outputs(CLOCK.replace("DATE", date) + self._template) for date in ("1 Jan 2000", "2 Feb 2001"))
        if one == other:
            return
        if DATE not in self._arguments:
            raise ConfigError(
                "the tokenizer's chat template prints the date, so that a run would be another one tomorrow; set"
                f" model.template.arguments={{{DATE}: 26 Jul 2024}}, {ASIDE}"
            )
        self._template = CLOCK.replace("DATE", f"{{{{ {DATE} }}}}") + self._template

    def _refuse_unknown_arguments(self) -> None:
        environment = Environment(autoescape=False, extensions=["jinja2.ext.loopcontrols"])
        try:
            named = meta.find_undeclared_variables(environment.parse(GENERATION.sub("", self._template)))
        except TemplateSyntaxError as error:
            raise ConfigError(f"the tokenizer's chat template cannot be read ({error}); mend it, {ASIDE}") from error
        if "strftime_now" in named:
            named.add(DATE)
        named -= {"messages", "strftime_now", "raise_exception", *environment.globals, *self._tokenizer.special_tokens_map}
        named -= set(inspect.signature(self._tokenizer.apply_chat_template).parameters)
        for name in self._arguments:
            if not named:
                raise ConfigError(f"model.template.arguments.{name}: the tokenizer's chat template takes none; leave it out.")
            if name not in named:
                raise ConfigError(unknown("argument of the tokenizer's chat template (model.template.arguments)", name, named))


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the template, of several the default one."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        named = ", ".join(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else "none"
        raise ConfigError(
            f"the tokenizer has no default chat template (it has {named}); set model.template.chat=false."
        ) from error


def _opening(asked: str, before: str) -> tuple[str, str]:
    """What stands between the generation prompt and an answer, and why nothing can be trained behind that prompt, if so."""
    if before.startswith(asked):
        return before[len(asked) :], ""
    common = next(place for place, (one, other) in enumerate(zip_longest(asked, before)) if one != other)
    return "", (
        f"the tokenizer's chat template asks for an answer behind {asked[common:]!r} and writes answers without it, so that"
        f" what is trained would not be what is asked; set model.template.arguments to what makes both alike, {ASIDE}"
    )


def _end(behind: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What a template writes behind an answer up to the first token that text does not have, and that token; without one, all
    of it up to white space."""
    added = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    found = [(behind.find(token), -len(token), token) for token in added if token.strip() and token in behind]
    if not found:
        return behind.rstrip(), ""
    place, _, token = min(found)
    return behind[:place], token


def _marked_up(what: str) -> str:
    return (
        f"{what} names its speakers (Human:, Assistant:) in a way that is no question for a chat template; give a list of"
        " messages, a text that begins with 'Human:' and ends with '\\n\\nAssistant:', or set model.template.chat=false."
    )
