"""Rows to records: pairs, single answers and conversations, as texts or lists of messages, under the usual column names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from reprlib import repr as brief
from typing import Any

from alignlab.data.files import Row, clean, names, or_misspelt
from alignlab.data.source import LeftOut, Origin, Split
from alignlab.errors import DataError, UnusableRowError
from alignlab.records import Dialogue, Record, Response, Turn

COLUMNS = {
    "prompt": ("prompt", "instruction"),
    "input": ("input",),
    "system": ("system",),
    "history": ("history",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "response": ("response", "completion", "output"),
    "messages": ("messages", "conversations", "conversation"),
    "label": ("label",),
    "score": ("score",),
    "attributes": ("attributes",),
}
"""What a row can hold -> the columns where it is looked for, the first that has a value."""
SPEAKERS = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""The name of a speaker -> its role."""
MARKER = "\n\nAssistant:"
"""Where the last answer of an HH dialogue begins."""
TURN = re.compile(r"\n\n(Human|Assistant):")
FRAME = "Human: {prompt}\n\nAssistant: "
"""How a plain text names the speakers of several turns."""
SAME, EMPTY, DIFFER = "both answers are the same", "an answer is empty", "prompts of the pair differ"
ONE_SIDE, NO_MESSAGE = "an answer of the pair is missing", "a message without role or content"
ANSWERS = ("chosen", "rejected", "response", "messages")
NO_TURNS = (
    "no answer of an assistant",
    "a message of another role",
    "a system turn behind others",
    "user and assistant do not take turns",
    "prompt and conversation differ",
)
"""Reasons for which a conversation is no pair of answers to one prompt."""
REPEATED = {"keep": "answers that repeat their prompt", "cut": "answers whose repeated prompt was cut"}
"""What is noted of a row whose answers all begin with its prompt."""
TRUE = {"true": "good", "false": "bad"}

Answer = tuple[tuple[Turn, ...], str]
"""The turns in front of an answer, where its value holds them, and its text."""


@dataclass
class Reader:
    """Rows to records. `columns`: field -> column, read before the usual names (COLUMNS). `answers`: of a conversation, the
    `last` answer is the response, or `all` of them, each a record. `repeated_prompt`: `keep` or `cut` a prompt with which all
    answers of its row begin. `frame`: how a plain text writes a question. `notes`: what was changed in rows that were kept."""

    columns: Mapping[str, str] = field(default_factory=dict)
    answers: str = "last"
    repeated_prompt: str = "keep"
    frame: str | None = None
    seen: dict[str, None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    notes: Counter[str] = field(default_factory=Counter)

    def records(self, row: str, fields: Mapping[str, Any]) -> tuple[Record, ...]:
        """The record of a row; several under `answers=all`. Raises UnusableRowError for a row that says nothing usable."""
        self.seen.update(dict.fromkeys(fields))
        lacking = [key for key in ("chosen", "rejected") if self._column(fields, key) is None]
        if len(lacking) == 1:
            found = names(fields, *self._places(lacking[0]))
            raise UnusableRowError(f"{row}: has one answer of a pair and no {lacking[0]!r}; the line has {found}.", ONE_SIDE)
        if not lacking:
            return self._pairs(row, fields)
        if self._column(fields, "response"):
            before, text = _answer(self._take(fields, "response"), "response", row)
            prompt = self._prompt(row, _joined(row, self._opening(row, fields, before), before))
            (text,), repeated = self._without_prompt(row, prompt, (_filled(text, "response", row),))
            self._note(prompt, (text,), repeated)
            return (Record(row, prompt, (self._response(row, fields, text),)),)
        if self._column(fields, "messages"):
            return self._conversation(row, fields)
        found = names(fields, *(place for key in ANSWERS for place in self._places(key)))
        raise UnusableRowError(
            f"{row}: needs 'chosen' and 'rejected', or 'response', or 'messages'; the line has {found}. Name other columns with"
            " data.columns={prompt: ..., chosen: ..., rejected: ...}.",
            "no answer in it",
        )

    def _pairs(self, row: str, fields: Mapping[str, Any]) -> tuple[Record, ...]:
        chosen = self._take(fields, "chosen")
        if isinstance(chosen, list) and len(chosen) == 1 and isinstance(chosen[0], (str, list)):
            chosen = chosen[0]
        before, better = _answer(chosen, "chosen", row)
        value = self._take(fields, "rejected")
        several = isinstance(value, list) and bool(value) and all(isinstance(each, (str, list)) for each in value)
        others = [_answer(each, "rejected", row) for each in (value if several else [value])]
        if any(turns != before for turns, _ in others):
            raise UnusableRowError(f"{row}: the prompts of chosen and rejected differ.", DIFFER)
        turns = _joined(row, self._opening(row, fields, before), before)
        texts = [text for _, text in others]
        if any(turn.role != "system" for turn in turns):
            prompt, sides = self._prompt(row, turns), ("chosen", *["rejected"] * len(texts))
            better, *texts = (_filled(text, key, row) for text, key in zip((better, *texts), sides, strict=True))
        elif MARKER not in better:
            found = names(fields, *self._places("prompt"))
            raise UnusableRowError(
                f"{row}: needs a 'prompt', or dialogues with {MARKER.strip()!r}; the line has {found}. Name others with"
                " data.columns={prompt: ...}.",
                "no prompt in it",
            )
        else:
            prompt, better, *texts = _dialogues(row, better, *texts)
            if turns:
                prompt = Dialogue(f"{turns[0].text}{prompt}", (*turns, *(prompt.turns if isinstance(prompt, Dialogue) else ())))
        (better, *texts), repeated = self._without_prompt(row, prompt, (better, *texts))
        kept = [text for text in texts if text != better]
        if not kept:
            raise UnusableRowError(f"{row}: chosen and rejected are the same text; remove the row.", SAME)
        self.notes["rejected answers equal to the chosen one left out"] += len(texts) - len(kept)
        self.notes["with several rejected answers, each a pair"] += len(kept) > 1
        self._note(prompt, (better, *kept), repeated)
        return tuple(
            Record.pair(f"{row}/{number}" if number > 1 else row, prompt, better, worse) for number, worse in enumerate(kept, 1)
        )

    def _conversation(self, row: str, fields: Mapping[str, Any]) -> tuple[Record, ...]:
        turns = self._with_system(row, fields, _turns(self._take(fields, "messages"), "messages", row))
        places = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
        if not places:
            raise UnusableRowError(f"{row}: no message is the assistant's; remove the row.", "no answer of an assistant")
        self.notes["turns behind the last answer left out"] += places[-1] < len(turns) - 1
        if self.answers == "last":
            self.notes["earlier answers of a conversation are prompt (data.answers=all trains on them)"] += len(places) > 1
        made = []
        for place in places if self.answers == "all" else places[-1:]:
            prompt = self._prompt(row, turns[:place])
            response = self._response(row, fields, _filled(turns[place].text, "messages", row))
            made.append(Record(row if place == places[-1] else f"{row}/{place + 1}", prompt, (response,)))
        return tuple(made)

    def _opening(self, row: str, fields: Mapping[str, Any], before: Sequence[Turn]) -> tuple[Turn, ...]:
        """The turns that the row gives apart from its answers."""
        prompt = self._take(fields, "prompt")
        if prompt is None and not (before and before[0].role != "assistant"):
            prompt = self._take(fields, "messages")
        if prompt is None:
            return self._with_system(row, fields, ())
        if not isinstance(prompt, str):
            return self._with_system(row, fields, _turns(prompt, "prompt", row))
        _filled(prompt, "prompt", row)
        if "input" in self.columns or ("prompt" not in self.columns and fields.get("prompt") is None):  # from `instruction`
            more = self._take(fields, "input")
            if isinstance(more, str) and more.strip():
                prompt = f"{prompt}\n{more}"
        return self._with_system(row, fields, [*self._history(row, fields), Turn("user", prompt)])

    def _history(self, row: str, fields: Mapping[str, Any]) -> list[Turn]:
        """Earlier questions and answers, [[question, answer], ...]."""
        history = self._take(fields, "history")
        if history is None or history == "":
            return []
        turns: list[Turn] = []
        for each in history if isinstance(history, list) else [None]:
            if not isinstance(each, list) or len(each) != 2 or not all(isinstance(text, str) for text in each):
                raise UnusableRowError(f"{row}: 'history' must be a list of [question, answer].", "a history of another form")
            turns += [Turn(role, text) for role, text in zip(("user", "assistant"), each, strict=True)]
        return turns

    def _with_system(self, row: str, fields: Mapping[str, Any], turns: Sequence[Turn]) -> tuple[Turn, ...]:
        system = self._take(fields, "system")
        if system is None or (isinstance(system, str) and not system.strip()):
            return tuple(turns)
        if not isinstance(system, str):
            raise UnusableRowError(
                f"{row}: 'system' must be a text but is {type(system).__name__}.", "a system turn is no text"
            )
        if turns and turns[0].role == "system":
            if turns[0].text != system:
                raise UnusableRowError(f"{row}: has two system texts; remove one.", "two system texts")
            return tuple(turns)
        return (Turn("system", system), *turns)

    def _prompt(self, row: str, turns: Sequence[Turn]) -> str:
        """The prompt that these turns are: a text where there is one of the user's alone, else a dialogue."""
        spoken = [turn for turn in turns if turn.role != "system"]
        roles = [turn.role for turn in spoken]
        if any(turn.role == "system" for turn in turns[1:]):
            raise UnusableRowError(f"{row}: a system turn stands behind others; put it first.", "a system turn behind others")
        if not roles or roles[-1] != "user" or roles[0] != "user" or any(one == other for one, other in pairwise(roles)):
            raise UnusableRowError(
                f"{row}: user and assistant must take turns in a prompt, the user first and last; it has"
                f" {', '.join(roles) or 'none'}.",
                "user and assistant do not take turns",
            )
        for turn in turns:
            _filled(turn.text, "prompt", row)
        self.notes["with a system turn"] += len(spoken) < len(turns)
        self.notes["with several turns"] += len(spoken) > 1
        return conversation(turns, self.frame)

    def _response(self, row: str, fields: Mapping[str, Any], text: str) -> Response:
        attributes = self._take(fields, "attributes") or {}
        if isinstance(attributes, dict):
            attributes = {key: value for key, value in attributes.items() if value is not None}
        if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
            raise UnusableRowError(
                f"{row}: 'attributes' must map names to texts but is {brief(attributes)}.", "attributes are no texts"
            )
        label, score = self._take(fields, "label"), self._take(fields, "score")
        return Response(text, _label(label, row), _score(score, row), attributes)

    def _without_prompt(self, row: str, prompt: str, answers: Sequence[str]) -> tuple[Sequence[str], bool]:
        """The answers, and whether all of them repeat their prompt, or its last question; under `cut`, without it."""
        last = prompt.turns[-1].text if isinstance(prompt, Dialogue) else prompt
        asked = next((text for text in (prompt.strip(), last.strip()) if all(_repeats(each, text) for each in answers)), None)
        if asked is None or self.repeated_prompt == "keep":
            return answers, asked is not None
        parts = [each.partition(asked) for each in answers]
        return [_filled(indent + rest.lstrip(), "an answer behind its prompt", row) for indent, _, rest in parts], True

    def _note(self, prompt: str, answers: Sequence[str], repeated: bool) -> None:
        """Counts repeated prompts, and what a chat template makes of turns that a text names."""
        self.notes[REPEATED[self.repeated_prompt]] += repeated
        if prompt.endswith(MARKER):
            further = any(TURN.search(answer) for answer in answers)
            self.notes["answers with a further turn behind them, which a chat template leaves out"] += further
            turns = prompt.turns if isinstance(prompt, Dialogue) else spoken(prompt)
            joined = bool(turns) and len(TURN.findall(prompt)) > 1 + sum(turn.role != "system" for turn in turns)
            self.notes["with turns of one speaker in a row, which a chat template gets as one"] += joined

    def _take(self, fields: Mapping[str, Any], key: str) -> Any:
        """The value of what is looked for, whose column counts as used; None where there is none."""
        if column := self._column(fields, key):
            self.used.add(column)
            return fields[column]
        return None

    def _column(self, fields: Mapping[str, Any], key: str) -> str | None:
        """The first column that has a value; NaN is none."""
        held = ((column, fields.get(column)) for column in self._places(key))
        return next((name for name, it in held if it is not None and not (isinstance(it, float) and math.isnan(it))), None)

    def _places(self, key: str) -> Sequence[str]:
        if key in self.columns:
            return (self.columns[key],)
        return [column for column in COLUMNS[key] if column not in self.columns.values()]


def split_of(lines: Iterable[Row], reader: Reader, dropped: frozenset[str] | None) -> Split:
    """The rows of a split as records. Rows that cannot be used are left out and counted where their reason is among `dropped`
    (None: any reason), and always where both answers are the same; others raise UnusableRowError."""
    records: list[Record] = []
    lost: list[LeftOut] = []
    count = 0
    for row, fields in lines:
        count += 1
        try:
            if isinstance(fields, UnusableRowError):
                raise fields
            records += reader.records(row, fields)
        except UnusableRowError as error:
            if dropped is not None and error.reason not in dropped | {SAME}:
                if dropped:
                    raise
                instead = "set data.unusable_pairs=drop to leave out every such row (with plan=true it lists them)"
                sentence = f"{str(error)[:-1]}; {instead}."
                raise UnusableRowError(sentence, error.reason) from None
            lost.append(LeftOut(row, error.reason))
    for key, column in reader.columns.items():
        if count and column not in reader.seen:
            raise DataError(f"data.columns.{key}={column}: no row has this column; there are {names(reader.seen, column)}.")
    absent = [name for places in COLUMNS.values() for name in places if name not in reader.seen]
    unused = tuple(or_misspelt(column, absent) for column in reader.seen if column not in reader.used)
    origin = Origin(used=tuple(column for column in reader.seen if column in reader.used), unused=unused)
    notes = {what: number for what, number in reader.notes.items() if number}
    return Split(tuple(records), tuple(lost), rows=count, notes=notes, origin=origin)


def spoken(text: str) -> tuple[Turn, ...]:
    """The turns of a text that names its speakers, from its first `Human:` to an `Assistant:` that is to go on; what stands in
    front is the system's, and turns of one speaker in a row are one. None in any other text."""
    opening, *pieces = TURN.split("\n\n" + text.lstrip("\n"))
    if not pieces or pieces[0] != "Human" or pieces[-2] != "Assistant" or pieces[-1].strip():
        return ()
    turns = [Turn("system", opening.strip())] if opening.strip() else []
    for speaker, words in zip(pieces[:-2:2], pieces[1:-2:2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        before = [turns.pop().text] if turns and turns[-1].role == role else []
        turns.append(Turn(role, "\n\n".join([*before, words.strip()])))
    return tuple(turns) if turns[-1].role == "user" else ()


def said(prompt: str, response: str) -> str:
    """A response as a turn of its own: behind a text that names its speakers, without the space behind the name, and up to the
    next one."""
    named = prompt.endswith(MARKER) if isinstance(prompt, Dialogue) else MARKER in f"\n\n{prompt}" and bool(spoken(prompt))
    return TURN.split(response)[0].removeprefix(" ") if named else response


def text(fields: Mapping[str, Any], key: str, row: str) -> str:
    """A field that has to be a text with something in it; raises DataError otherwise."""
    value = fields.get(key)
    if not isinstance(value, str):
        raise DataError(f"{row}: {key!r} must be a text but is {type(value).__name__}; the line has {names(fields, key)}.")
    return _filled(value, key, row)


def _filled(value: str, key: str, row: str) -> str:
    if not value.strip():
        what = "a prompt is empty" if key == "prompt" else EMPTY
        raise UnusableRowError(f"{row}: {key!r} is empty; remove the row or give it a text.", what)
    return clean(value, key, row)


def _repeats(answer: str, asked: str) -> bool:
    """Whether an answer begins with a prompt of several words, at the end of a word."""
    said, beyond = answer.lstrip(), answer.lstrip()[len(asked) :]
    return " " in asked and said.startswith(asked) and not (asked[-1].isalnum() and beyond[:1].isalnum())


def _dialogues(row: str, *dialogues: str) -> list[str]:
    """The prompt that dialogues have in common, up to and with the last marker, and the answer of each behind it."""
    prompts, answers = zip(*(_cut(row, dialogue) for dialogue in dialogues), strict=True)
    if len(set(prompts)) > 1:
        raise UnusableRowError(f"{row}: the prompts of chosen and rejected differ.", DIFFER)
    return [prompts[0], *answers]


def _cut(row: str, dialogue: str) -> tuple[str, str]:
    prompt, marker, answer = dialogue.rpartition(MARKER)
    if not marker or not answer.strip():
        raise UnusableRowError(f"{row}: no answer behind the last {MARKER.strip()!r}.", EMPTY)
    clean(dialogue, "a dialogue", row)
    turns = spoken(prompt + marker)
    return Dialogue(prompt + marker, turns) if turns else prompt + marker, answer


def _answer(value: Any, key: str, row: str) -> Answer:
    """An answer as a text or as the last of its messages, with the messages in front of it."""
    if isinstance(value, str):
        return (), value
    turns = _turns(value, key, row)
    if turns[-1].role != "assistant":
        raise UnusableRowError(
            f"{row}: the last message of {key!r} is not the assistant's; mend the row.", "no answer of an assistant"
        )
    return turns[:-1], turns[-1].text


def _turns(value: Any, key: str, row: str) -> tuple[Turn, ...]:
    """A list of messages, {role, content} or {from, value}; a single message; or a column of each as a table stores them."""
    if isinstance(value, dict) and value and all(isinstance(held, list) for held in value.values()):
        value = [dict(zip(value, each)) for each in zip(*value.values())]
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise _other_form(value, key, row)
    turns = []
    for message in messages:
        speaker = message.get("role", message.get("from"))
        said = message.get("content", message.get("value"))
        if isinstance(said, list) and said and all(isinstance(part, dict) and part.get("type") == "text" for part in said):
            said = "".join(str(part.get("text") or "") for part in said)
        if not isinstance(speaker, str) or not isinstance(said, str):
            found = names(message, "role", "content", "from", "value")
            raise UnusableRowError(
                f"{row}: a message of {key!r} must have 'role' and 'content', both texts; it has {found}.", NO_MESSAGE
            )
        if speaker.lower() not in SPEAKERS:
            raise UnusableRowError(
                f"{row}: {key!r} has a message of {speaker[:40]!r}; known are {', '.join(SPEAKERS)}.",
                "a message of another role",
            )
        turns.append(Turn(SPEAKERS[speaker.lower()], said))
    return tuple(turns)


def _other_form(value: Any, key: str, row: str) -> UnusableRowError:
    return UnusableRowError(
        f"{row}: {key!r} must be a text or a list of turns with 'role' and 'content' but is {type(value).__name__}.",
        "a column of another form",
    )


def _joined(row: str, opening: Sequence[Turn], before: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns given apart, then those in front of the answer; once where the latter begin with the former."""
    asked = [turn for turn in opening if turn.role != "system"]
    spoken = [turn for turn in before if turn.role != "system"]
    if not before or not asked or not spoken or before[0].role == "assistant":
        return (*opening, *before) if spoken or not before else (*before, *opening)
    systems = dict.fromkeys(turn for turn in (*opening, *before) if turn.role == "system")
    alike = len(asked) == 1 and asked[0].text.strip() == spoken[0].text.strip()
    if len(systems) > 1 or not (alike or spoken[: len(asked)] == asked):
        raise UnusableRowError(
            f"{row}: the prompt is not that of the conversation; mend the row.", "prompt and conversation differ"
        )
    return (*systems, *asked, *spoken[len(asked) :])


def conversation(turns: Sequence[Turn], frame: str | None = None) -> str:
    """The prompt that some turns are, the last of them the user's: a single one is its text. `frame`: of each question, null =
    FRAME where there are several."""
    if len(turns) == 1 and frame is None:
        return turns[0].text
    several = sum(turn.role != "system" for turn in turns) > 1
    return Dialogue(_written(turns, frame or (FRAME if several else "{prompt}")), turns)


def _written(turns: Sequence[Turn], frame: str) -> str:
    """Turns as one text: each question in the frame, answers behind it, an empty line between."""
    parts: list[str] = []
    for turn in turns:
        if turn.role == "assistant":
            parts[-1] += turn.text
        else:
            parts.append(turn.text if turn.role == "system" else frame.replace("{prompt}", turn.text))
    return "\n\n".join(parts)


def _label(value: Any, row: str) -> str | None:
    """True and false are good and bad, as texts too, since a table of texts has no other way to say it."""
    if value is None:
        return None
    if not isinstance(value, (str, int, float)):
        raise UnusableRowError(
            f"{row}: 'label' must be a text, a number, true or false but is {brief(value)}.", "a label of another form"
        )
    if not str(value).strip():
        raise UnusableRowError(f"{row}: 'label' is empty; give it a text, or null.", "a label is empty")
    return TRUE.get(str(value).lower()) or clean(str(value), "label", row)


def _score(value: Any, row: str) -> float | None:
    try:
        score = value if isinstance(value, (int, float)) or value in (None, "") else float(value)
        usable = score in (None, "") or (not isinstance(score, bool) and math.isfinite(score))
    except (TypeError, ValueError, OverflowError):
        usable = False
    if not usable:
        raise UnusableRowError(
            f"{row}: 'score' must be a finite number but is {brief(value)}; mend the row.", "a score is no finite number"
        )
    return None if score in (None, "") else score
