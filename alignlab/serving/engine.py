"""One thread that answers questions to several runs: what waits together is written together, whatever its strengths."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from alignlab.data.rows import conversation
from alignlab.errors import AlignlabError, ConfigError, ControlError, DataError
from alignlab.models.answers import check_prompt, check_writes, ends, followed, text_of
from alignlab.models.following import Pieces
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.strength import AskedStrength, ClassMixture, strengths_of
from alignlab.records import Turn
from alignlab.serving.ranges import Outside, Ranges, kept_inside, named

log = logging.getLogger(__name__)
GATHER_SECONDS = 0.005
"""How long a batch waits for more: clients that were answered together ask again together."""
HEAD = 64
"""Numbers of a tensor that are looked at before whole tensors are compared."""


class FullError(AlignlabError):
    """As many questions wait as may; ask again later."""


class UnknownModelError(AlignlabError):
    """A model that is not served."""


@dataclass(frozen=True)
class Limits:
    """What one request, and all together, may take. `new_tokens`: of an answer; `prompt_tokens`: None = what the model has
    room for; `rows`: answers that are written at a time; `waiting`: questions that wait for a place among them."""

    new_tokens: int
    prompt_tokens: int | None
    rows: int
    waiting: int


@dataclass(frozen=True)
class Question:
    """A prompt as ids, and how it is to be answered. `prompt`: its text where a template wrote it, None for a text that is
    continued as it stands. `strength`: one number, or one by the name of each of several adapters. `control`: classes; else the
    strength counts. `streams`: pieces are wanted as they come. `warning`: what the asker has to be told about the strength."""

    model: str
    ids: tuple[int, ...]
    prompt: str | None
    strength: AskedStrength
    control: ClassMixture | None
    sampling: Sampling
    seed: int
    streams: bool
    warning: str | None = None

    def alike(self) -> Any:
        """Questions with equal values are answered in one batch."""
        return self.model, self.control is None, replace(self.sampling, max_new_tokens=1, stop=())


@dataclass(frozen=True)
class Piece:
    """A part of an answer; without streaming, all of it. `tokens`: new ones so far. `finish`: of the last piece, "stop" or
    "length". `error`: why there is none, and whether the question is to blame."""

    text: str = ""
    tokens: int = 0
    finish: str | None = None
    error: str | None = None
    asked_wrongly: bool = False


@dataclass(eq=False)
class Reply:
    """A question on its way. `deliver` is called in the engine's thread, last with a piece that has a finish or an error.
    `left`: nobody waits for the answer any more."""

    question: Question
    deliver: Callable[[Piece], None]
    left: bool = field(default=False)


class Engine:
    """Policies by the names of their models. `ask` queues a question; the thread takes the oldest and all that can be answered
    with it, up to `limits.rows`. It writes them to their ends, or until they are left, and takes the next ones. `ranges`: the
    safe ranges of each model; `outside`: what happens to a strength outside.

    Raises ModelError for a policy that writes no text.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        limits: Limits,
        ranges: Mapping[str, Ranges] | None = None,
        outside: Outside = "warn",
    ) -> None:
        for policy in policies.values():
            check_writes(policy)
        share_weights(list(policies.values()))
        self.policies, self.limits, self.ranges, self.outside = policies, limits, ranges or {}, outside
        self._changed = threading.Condition()
        self._reading = threading.Lock()  # a tokenizer's settings are its own, and not a thread's
        self._waiting: list[Reply] = []
        self._running: Sequence[Reply] = ()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> dict[str, int]:
        """Questions that are being answered, and that wait."""
        with self._changed:
            return {
                "running": sum(not reply.left for reply in self._running),
                "waiting": sum(not reply.left for reply in self._waiting),
            }

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and not self._closing

    def question(
        self,
        model: str,
        asked: str | Sequence[Turn],
        sampling: Callable[[int], Sampling],
        *,
        strength: AskedStrength | None,
        control: ClassMixture | None,
        new_tokens: int | None,
        seed: int,
        streams: bool,
    ) -> Question:
        """What is asked, checked: a text that is continued as it stands, or turns that the run's template writes. `sampling`:
        of so many new tokens; None of them is as many as the limits allow and there is room for.

        Raises UnknownModelError, and ConfigError, ControlError or DataError for what cannot be answered.
        """
        if model not in self.policies:
            raise UnknownModelError(f"model {model!r} is not served here; known: {', '.join(self.policies)}.")
        policy = self.policies[model]
        if strength is not None and control is not None:
            raise ControlError("strength and control were both given; a run with classes is asked by one of them.")
        strength, warning = 1.0 if strength is None else strength, None
        (setting,) = strengths_of(policy.tuner, strength, 1)
        if control is not None:
            policy.controls.mixtures(control, 1)
        else:
            policy.tuner.passes(setting)
            strength, warning = kept_inside(strength, self.ranges.get(model, {}), self.outside)
            if warning:
                log.warning("%s: %s", model, warning)
        with self._reading:
            prompt, ids = _read(policy, asked)
        if self.limits.prompt_tokens is not None and len(ids) > self.limits.prompt_tokens:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens; this server takes {self.limits.prompt_tokens}, so shorten it."
            )
        if new_tokens is None:
            left = self.limits.new_tokens if policy.backbone.model.config.is_encoder_decoder else policy.room - len(ids)
            new_tokens = max(1, min(left, self.limits.new_tokens))
        if new_tokens > self.limits.new_tokens:
            raise ConfigError(f"{new_tokens} new tokens were asked for; this server writes {self.limits.new_tokens} at most.")
        check_prompt(policy, prompt or str(asked), ids, new_tokens)
        return Question(model, ids, prompt, strength, control, sampling(new_tokens), seed, streams, warning)

    def ask(self, question: Question, deliver: Callable[[Piece], None]) -> Reply:
        """Queues a question. Raises FullError where too many wait, or the engine is closing."""
        reply = Reply(question, deliver)
        with self._changed:
            self._waiting = [each for each in self._waiting if not each.left]
            if self._closing or len(self._waiting) >= self.limits.waiting:
                raise FullError(f"{len(self._waiting)} questions wait already; ask again in a moment.")
            self._waiting.append(reply)
            self._changed.notify_all()
        return reply

    def close(self) -> None:
        """Ends the thread; what is being written breaks off at its next token."""
        with self._changed:
            self._closing = True
            for reply in (*self._waiting, *self._running):
                reply.left = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._taken():
            try:
                self._answer([reply.question for reply in batch], batch)
            except Exception:
                log.exception("a batch of %d questions could not be answered", len(batch))
                for reply in batch:
                    reply.deliver(Piece(error="the answer could not be computed; the server's log says why."))

    def _taken(self) -> list[Reply]:
        """The next batch; empty at the end."""
        with self._changed:
            self._running = ()
            while not self._closing:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                self._changed.wait_for(lambda: len(self._waiting) >= self.limits.rows or self._closing, GATHER_SECONDS)
                self._waiting = [reply for reply in self._waiting if not reply.left]
                self._running = self._fitting()
                self._waiting = [reply for reply in self._waiting if reply not in self._running]
                if self._running:
                    return list(self._running)
            return []

    def _fitting(self) -> list[Reply]:
        """The oldest question, and those that can be answered with it."""
        taken = self._waiting[:1]
        for reply in self._waiting[1:]:
            asked = [each.question for each in (*taken, reply)]
            if len(asked) <= self.limits.rows and asked[-1].alike() == asked[0].alike() and self._has_room(asked):
                taken.append(reply)
        return taken

    def _has_room(self, asked: Sequence[Question]) -> bool:
        """The rows of a batch grow together, so the longest prompt needs room for the longest answer."""
        room = self.policies[asked[0].model].prompt_room(max(each.sampling.max_new_tokens for each in asked))
        return max(len(each.ids) for each in asked) <= room

    def _answer(self, asked: Sequence[Question], replies: Sequence[Reply]) -> None:
        policy, first = self.policies[asked[0].model], asked[0]
        texts = [_Text(policy, reply) for reply in replies]
        controls = [each.control for each in asked if each.control is not None]
        followed(
            policy,
            [each.ids for each in asked],
            [each.strength for each in asked],
            controls or None,
            # Each text looks for its own end.
            replace(first.sampling, max_new_tokens=max(each.sampling.max_new_tokens for each in asked), stop=()),
            [each.seed for each in asked],
            lambda row, ids: texts[row].follow(ids),
        )
        for text in texts:
            text.end()


class _Text:
    """The text of a reply while it is written."""

    def __init__(self, policy: Policy, reply: Reply) -> None:
        self._policy, self._reply, self._codec = policy, reply, policy.backbone.codec
        self._ends = set(ends(policy.backbone))
        self._stop = (*reply.question.sampling.stop, *self._codec.stop)
        self._pieces = Pieces(self._codec, self._stop)
        self._ids: Sequence[int] = ()
        self._ended = False

    def follow(self, ids: Sequence[int] | None) -> bool:
        """Delivers what is new; whether the text has ended."""
        question, reply = self._reply.question, self._reply
        if reply.left:
            self._ended = True
        elif ids is None:
            asked = f"strength={named(question.strength)}" if question.control is None else f"control={question.control}"
            said = f"at {asked} the model's numbers are no longer finite; ask for less."
            reply.deliver(Piece(error=said, asked_wrongly=True))
            self._ended = True
        else:
            self._ids = ids
            full = len(ids) >= question.sampling.max_new_tokens
            finish = "stop" if ids[-1] in self._ends else "length" if full else None
            if finish or question.streams or self._stop:
                self._tell(finish)
        return self._ended

    def end(self) -> None:
        """Delivers the end of a text that the model's own settings have ended."""
        if not self._ended:
            self._tell("stop")

    def _tell(self, finish: str | None) -> None:
        question = self._reply.question
        text = text_of(self._policy.backbone, question.ids, self._ids, ())
        places = [text.index(each) for each in self._stop if each in text]
        if places:
            text, finish = text[: min(places)], "stop"
        if question.prompt is not None:
            text = self._codec.answer(question.prompt, text)
        self._ended = finish is not None
        if question.streams or finish:
            piece = self._pieces.next(text, ended=self._ended)
            if piece or finish:
                self._reply.deliver(Piece(piece, len(self._ids), finish))


def _read(policy: Policy, asked: str | Sequence[Turn]) -> tuple[str | None, tuple[int, ...]]:
    """The prompt that a template writes, None where none does, and its ids."""
    codec = policy.backbone.codec
    if isinstance(asked, str) and not policy.backbone.model.config.is_encoder_decoder:
        ids = (*codec.head, *codec.prefix(asked))
        if not ids:
            raise DataError("the prompt is empty; give a text.")
        return None, ids
    prompt = asked if isinstance(asked, str) else conversation(_taking_turns(asked))
    (ids,) = codec.prompts([prompt])
    return prompt, ids


def _taking_turns(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Raises DataError for anything but user and assistant in turn, a system turn perhaps before them, the user's last."""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    expected = ["user", "assistant"] * len(spoken)
    if len(spoken) % 2 == 0 or any(turn.role != role for turn, role in zip(spoken, expected)):
        raise DataError(
            "messages must be of user and assistant in turn, the last of them the user's, with at most one of system before"
            f" them; these are of {', '.join(turn.role for turn in turns[:8])}."
        )
    return turns


def share_weights(policies: Sequence[Policy]) -> None:
    """Keeps one copy of the parameters that several policies have alike, such as those of their backbone. Policies that share
    weights may not run at the same time, since some tuners move weights while they are set."""
    known: dict[Any, list[Tensor]] = {}
    for policy in policies:
        free = {key: list(tensors) for key, tensors in known.items()}
        for tensor in policy.model.parameters():
            key = (tensor.shape, tensor.dtype, tensor.device, tuple(tensor.flatten()[:HEAD].tolist()))
            candidates = free.get(key, [])
            place = next((place for place, each in enumerate(candidates) if torch.equal(each, tensor)), None)
            if place is None:
                known.setdefault(key, []).append(tensor)
            else:  # once for each of a policy's own, two of which may be alike and move apart
                tensor.data = candidates.pop(place).data
