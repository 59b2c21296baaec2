"""The engine: what waits together is answered together, each as if it were alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from alignlab.errors import ConfigError, ControlError, DataError, ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.records import Turn
from alignlab.serving.engine import Engine, FullError, Limits, Piece, Reply, UnknownModelError, share_weights
from tests.conftest import CODEC, backbone
from tests.contracts import kinds
from tests.contracts.controls import CASES, trained
from tests.unit.conftest import attached

LIMITS = Limits(new_tokens=32, prompt_tokens=None, rows=8, waiting=64)
PROMPTS = ("Tell a story about Tom and a kite.", "Tell a story.", "Anna was sad.", "Tell a short story about Sam and a boat.")
STRENGTHS = (0.0, 1.5, 0.5, 0.0, 1.0, -1.0, 2.0)
NEW = 12


def red() -> Policy:
    """A RED policy, the same each time."""
    return attached("red", backbone("llama"))


def meet() -> Policy:
    """One with three classes, likewise."""
    return trained(next(case for case in CASES if case.form == "soft_prompt"), backbone("llama"))


@contextmanager
def running(policies: Mapping[str, Policy], limits: Limits = LIMITS) -> Iterator[Engine]:
    """An engine on some policies, closed at the end."""
    engine = Engine(policies, limits)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A RED policy as the model `red`."""
    with running({"red": red()}) as made:
        yield made


def sampling(new: int, **chosen: Any) -> Sampling:
    """Greedy, unless a test chooses otherwise."""
    return Sampling(new, **{"temperature": 0.0, "top_p": 1.0, **chosen})


class Heard:
    """What a question has been answered, piece by piece."""

    def __init__(self, engine: Engine, asked: Any, model: str = "red", streams: bool = False, **more: Any) -> None:
        chosen = more.pop("sampling", sampling)
        given = {"strength": None, "control": None, "new_tokens": NEW, "seed": 0, **more}
        self.pieces: queue.Queue[Piece] = queue.Queue()
        question = engine.question(model, asked, chosen, streams=streams, **given)
        self.reply: Reply = engine.ask(question, self.pieces.put)

    def all(self) -> list[Piece]:
        """The pieces up to the last."""
        found = [self.pieces.get(timeout=60)]
        while found[-1].finish is None and found[-1].error is None:
            found.append(self.pieces.get(timeout=60))
        return found

    def text(self) -> str:
        """The whole answer."""
        return "".join(piece.text for piece in self.all())


def half(policy: Policy) -> list[str]:
    """Answers at half the strength."""
    return policy.respond(list(PROMPTS), strength=0.5, sampling=sampling(NEW), seed=0)


def chat(prompt: str) -> list[Turn]:
    """A conversation of one question."""
    return [Turn("user", prompt)]


@contextmanager
def halted(engine: Engine, model: str = "red") -> Iterator[None]:
    """No batch is computed inside; the engine is in the middle of one."""
    policy = engine.policies[model]
    begun, go_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        begun.set()
        assert go_on.wait(60)

    hook = policy.model.register_forward_pre_hook(wait)
    held = Heard(engine, chat("Tell a story."), model)
    assert begun.wait(60)
    hook.remove()
    try:
        yield
    finally:
        held.reply.left = True
        go_on.set()


def test_mixed_strengths_in_one_batch_are_answered_as_each_alone(engine: Engine) -> None:
    policy = red()  # one that the engine is not using
    passes: list[int] = []
    engine.policies["red"].model.register_forward_pre_hook(
        lambda _, __, given: passes.append(len(given["input_ids"])), with_kwargs=True
    )

    with halted(engine):
        heard = [Heard(engine, chat(PROMPTS[n % 4]), strength=each) for n, each in enumerate(STRENGTHS)]
    texts = [each.text() for each in heard]

    assert max(passes) == len(STRENGTHS)
    alone = [
        policy.respond([PROMPTS[n % 4]], strength=each, sampling=sampling(NEW), seed=0)[0] for n, each in enumerate(STRENGTHS)
    ]
    assert texts == alone
    assert len(set(texts)) > 4


def test_at_strength_0_a_text_goes_on_as_in_the_backbone_itself(engine: Engine) -> None:
    plain = backbone("llama").model
    ids = CODEC.tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    ids = torch.cat([torch.tensor([[*CODEC.head]]), ids], dim=1) if int(ids[0, 0]) != CODEC.head[0] else ids

    heard = [Heard(engine, PROMPTS[0], strength=each) for each in (1.5, 0.0, 1.5, 0.0)]

    made = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)  # type: ignore[operator]
    expected = CODEC.decode(made[0].tolist())[len(CODEC.decode(ids[0].tolist())) :]
    texts = [each.text() for each in heard]
    assert texts[1] == texts[3] == expected
    assert texts[0] == texts[2] != expected


def test_a_seed_draws_what_it_draws_alone(engine: Engine) -> None:
    def drawn(new: int) -> Sampling:
        return sampling(new, temperature=1.0, top_p=0.9)

    heard = [Heard(engine, chat(PROMPTS[0]), seed=seed, sampling=drawn, new_tokens=8 + seed) for seed in range(4)]

    policy = red()
    alone = [policy.respond([PROMPTS[0]], sampling=drawn(8 + seed), seed=seed)[0] for seed in range(4)]
    assert [each.text() for each in heard] == alone
    assert len(set(alone)) == 4


def test_classes_and_their_mixtures_are_answered_together() -> None:
    asked = ["good", "bad", {"good": 0.7, "bad": 0.3}, "none"]

    with running({"meet": meet()}) as engine:
        texts = [each.text() for each in [Heard(engine, chat(PROMPTS[0]), "meet", control=each) for each in asked]]

    assert texts == [meet().respond([PROMPTS[0]], control=each, sampling=sampling(NEW), seed=0)[0] for each in asked]


def test_an_encoder_decoder_answers_prompts_of_different_lengths_together() -> None:
    made = kinds.Made("seq2seq", "t5")

    with running({"t5": kinds.trained(made, "red")}) as engine:
        texts = [each.text() for each in [Heard(engine, prompt, "t5", strength=0.5) for prompt in PROMPTS]]

    policy = kinds.trained(made, "red")
    assert texts == [policy.respond([prompt], strength=0.5, sampling=sampling(NEW), seed=0)[0] for prompt in PROMPTS]


def test_the_pieces_of_a_stream_add_up_and_stop_in_front_of_a_text(engine: Engine) -> None:
    whole = Heard(engine, chat(PROMPTS[1]), new_tokens=30).text()
    stop = whole[len(whole) // 2 :][:3]

    streamed = Heard(engine, chat(PROMPTS[1]), new_tokens=30, streams=True).all()
    stopped = Heard(
        engine, chat(PROMPTS[1]), new_tokens=30, streams=True, sampling=lambda new: sampling(new, stop=(stop,))
    ).all()

    assert len(streamed) > 5
    assert "".join(piece.text for piece in streamed) == whole
    assert "".join(piece.text for piece in stopped) == whole[: whole.index(stop)]
    assert stopped[-1].finish == "stop"


def test_a_text_that_the_models_own_settings_end_is_delivered(engine: Engine) -> None:
    engine.policies["red"].backbone.model.generation_config.max_time = 1e-9  # type: ignore[union-attr]

    (last,) = Heard(engine, PROMPTS[0]).all()

    assert (last.finish, last.tokens) == ("stop", 1)


def test_how_an_answer_ended_and_its_tokens_are_told(engine: Engine) -> None:
    (last,) = Heard(engine, chat(PROMPTS[0]), new_tokens=3).all()

    assert (last.finish, last.tokens) == ("length", 3)


def test_without_a_number_of_tokens_an_answer_has_as_many_as_the_limits_and_the_model_allow() -> None:
    with running({"red": red()}, replace(LIMITS, new_tokens=1000)) as engine:
        question = engine.question(
            "red", PROMPTS[0], sampling, strength=0.0, control=None, new_tokens=None, seed=0, streams=False
        )

    assert question.sampling.max_new_tokens == 128 - len(question.ids)


def test_a_batch_has_room_for_its_longest_prompt_with_its_longest_answer() -> None:
    policy = attached("red", backbone("gpt2"))  # whose positions end at 128
    long = "a " * 50

    with running({"red": policy}, replace(LIMITS, new_tokens=120)) as engine:
        heard = [Heard(engine, long, new_tokens=2), Heard(engine, "a", new_tokens=100)]
        pieces = [each.all()[-1] for each in heard]

    assert [piece.error for piece in pieces] == [None, None]


def test_a_client_that_hangs_up_frees_its_row(engine: Engine) -> None:
    steps: list[int] = []
    engine.policies["red"].model.register_forward_pre_hook(lambda *_: steps.append(0))
    first = Heard(engine, chat(PROMPTS[0]), new_tokens=32, streams=True)
    first.pieces.get(timeout=60)

    first.reply.left = True
    Heard(engine, chat(PROMPTS[0]), new_tokens=1).all()

    assert len(steps) < 32
    assert engine.load["waiting"] == 0


def test_more_than_may_wait_is_refused_until_one_has_left() -> None:
    with running({"red": red()}, replace(LIMITS, waiting=2)) as engine:
        with halted(engine):
            waiting = [Heard(engine, "a"), Heard(engine, "b")]
            with pytest.raises(FullError):
                Heard(engine, "c")
            waiting[0].reply.left = True
            third = Heard(engine, "c")

        assert third.all()[-1].finish == "length"
        assert waiting[1].all()[-1].finish == "length"


def test_numbers_that_are_no_longer_finite_end_their_own_answer_alone(engine: Engine) -> None:
    def overflow(_: Any, __: Any, logits_BTV: torch.Tensor) -> torch.Tensor:
        return logits_BTV.index_fill(0, torch.tensor([0]), float("nan"))

    with halted(engine):
        hook = engine.policies["red"].backbone.head.register_forward_hook(overflow)
        wild, tame = (Heard(engine, PROMPTS[0], strength=each) for each in (2e30, 0.5))

    (error,) = wild.all()
    text = tame.text()
    hook.remove()
    assert error.asked_wrongly
    assert error.error is not None
    assert "strength=2e+30" in error.error
    assert text == Heard(engine, PROMPTS[0], strength=0.5).text()


def test_a_batch_that_fails_is_told_and_the_next_is_answered(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        hook.remove()
        raise RuntimeError("out of memory")

    hook = engine.policies["red"].model.register_forward_pre_hook(fail)
    (failed,) = Heard(engine, "a").all()

    assert failed.error is not None
    assert not failed.asked_wrongly
    assert Heard(engine, "a").all()[-1].finish == "length"


@pytest.mark.parametrize(
    ("asked", "given", "error", "said"),
    [
        ("a", {"model": "blue"}, UnknownModelError, "known: red"),
        ("a", {"control": "good"}, ControlError, "no classes"),
        ("a", {"control": "good", "strength": 1.0}, ControlError, "both"),
        ("a", {"strength": float("nan")}, ControlError, "not finite"),
        ("a", {"strength": -1e300}, ControlError, "float32"),
        ("a", {"new_tokens": 33}, ConfigError, "32 at most"),
        ("a " * 120, {}, ConfigError, "has room for"),
        ([Turn("assistant", "a")], {}, DataError, "in turn"),
        ([Turn("user", "a"), Turn("assistant", "b")], {}, DataError, "in turn"),
        ([Turn("user", "a"), Turn("system", "b"), Turn("user", "c")], {}, DataError, "in turn"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_it_waits(
    engine: Engine, asked: Any, given: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Heard(engine, asked, **given)


def test_a_prompt_over_the_limit_is_refused() -> None:
    with (
        running({"red": red()}, replace(LIMITS, prompt_tokens=4)) as engine,
        pytest.raises(ConfigError, match="takes 4"),
    ):
        Heard(engine, PROMPTS[0])


def test_an_engine_that_has_closed_refuses() -> None:
    with running({"red": red()}) as engine:
        pass

    assert not engine.alive
    with pytest.raises(FullError):
        Heard(engine, "a")


def test_runs_on_one_backbone_keep_its_weights_once_and_say_what_they_said() -> None:
    policies = [attached("red", backbone("llama")), attached("full", backbone("llama")), attached("lora", backbone("llama"))]
    before = [half(policy) for policy in policies]

    share_weights(policies)

    held = {each.data_ptr() for policy in (policies[0], policies[2]) for each in policy.backbone.model.parameters()}
    alone = sum(1 for policy in (policies[0], policies[2]) for _ in policy.backbone.model.parameters())
    assert len(held) == alone - sum(1 for _ in backbone("llama").model.parameters())
    assert [half(policy) for policy in policies] == before


def test_a_policy_that_writes_no_text_is_refused(llama: Backbone) -> None:
    policy = attached("red", llama)
    policy.backbone.model.can_generate = lambda: False  # type: ignore[method-assign]

    with pytest.raises(ModelError, match="writes no text"):
        Engine({"red": policy}, LIMITS)
