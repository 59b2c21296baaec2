"""Strengths of several adapters in one model, and strengths outside the range at which a run was seen to hold."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from alignlab.errors import ControlError
from alignlab.models.policy import Policy
from alignlab.serving.engine import Engine
from alignlab.serving.ranges import kept_inside
from alignlab.tuners.composed import compose
from tests.conftest import backbone
from tests.unit.conftest import attached
from tests.unit.serving.conftest import held
from tests.unit.serving.test_engine import NEW, PROMPTS, Heard, chat, halted, running, sampling

RANGES = {"red": held(0.0, 1.5), "lora": None}
"""Of the two adapters, one of which was never evaluated."""
STRENGTHS = (
    {"red": 0.0, "lora": 1.5},
    {"lora": -1.0, "red": 1.5},
    0.0,
    {"red": 0.0, "lora": 0.0},
    1.5,
    {"red": 0.5, "lora": 2.0},
)


def both() -> Policy:
    """Two adapters in one backbone, the same each time."""
    return compose({name: attached(name, backbone("llama")) for name in ("red", "lora")})


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A model of both."""
    with running({"red+lora": both()}) as made:
        yield made


def ask(engine: Engine, strength: Any, prompt: str = PROMPTS[0]) -> Heard:
    """A question to it."""
    return Heard(engine, chat(prompt), "red+lora", strength=strength)


def test_mixed_strengths_of_two_adapters_in_one_batch_are_answered_as_each_alone(engine: Engine) -> None:
    policy = both()  # one that the engine is not using
    passes: list[int] = []
    hook = engine.policies["red+lora"].model.register_forward_pre_hook(
        lambda _, __, given: passes.append(len(given["input_ids"])), with_kwargs=True
    )

    with halted(engine, "red+lora"):
        heard = [ask(engine, each, PROMPTS[n % 4]) for n, each in enumerate(STRENGTHS)]
    texts = [each.text() for each in heard]
    hook.remove()

    assert max(passes) == len(STRENGTHS)
    alone = [
        policy.respond([PROMPTS[n % 4]], strength=each, sampling=sampling(NEW), seed=0)[0] for n, each in enumerate(STRENGTHS)
    ]
    assert texts == alone
    assert len(set(texts)) > 3
    assert ask(engine, None).text() == ask(engine, {"red": 1.0, "lora": 1.0}).text()


@pytest.mark.parametrize(
    ("strength", "said"),
    [
        ({"red": 1.0}, "give one for each of red, lora"),
        ({"red": 1.0, "lora": 1.0, "clm": 1.0}, "give one for each of red, lora"),
        ({}, "give one for each of red, lora"),
        ({"red": float("nan"), "lora": 1.0}, "not finite"),
        ({"red": 1e300, "lora": 1.0}, "float32"),
    ],
)
def test_names_and_numbers_that_cannot_be_are_refused_before_they_wait(engine: Engine, strength: Any, said: str) -> None:
    with pytest.raises(ControlError, match=said):
        ask(engine, strength)


def test_one_run_alone_takes_no_names() -> None:
    with running({"red": attached("red", backbone("llama"))}) as engine, pytest.raises(ControlError, match="not a number"):
        Heard(engine, "a", strength={"1.5": 2.0})


@pytest.mark.parametrize(
    ("asked", "clamped", "said"),
    [
        (2.0, {"red": 1.5, "lora": 2.0}, "strength 2 of red is outside the safe range 0 to 1.5"),
        ({"lora": -9.0, "red": -0.5}, {"lora": -9.0, "red": 0.0}, "strength -0.5 of red is outside the safe range 0 to 1.5"),
    ],
)
def test_each_adapter_has_its_own_range_or_none(asked: Any, clamped: Any, said: str) -> None:
    assert kept_inside(1.5, RANGES, "refuse") == (1.5, None)
    assert kept_inside({"red": 0.0, "lora": 9.0}, RANGES, "refuse") == ({"red": 0.0, "lora": 9.0}, None)
    warned, warning = kept_inside(asked, RANGES, "warn")
    moved, answered_at = kept_inside(asked, RANGES, "clamp")
    with pytest.raises(ControlError, match=f"{said}.*ask for a strength inside"):
        kept_inside(asked, RANGES, "refuse")

    assert warned == asked
    assert warning is not None
    assert warning.startswith(said)
    assert moved == clamped
    assert answered_at is not None
    assert answered_at.endswith(f"answered at {', '.join(f'{name} {value:g}' for name, value in clamped.items())}.")


def test_outside_one_runs_range_it_is_warned_of_clamped_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    policy = attached("red", backbone("llama"))
    inside, beyond = policy.respond([PROMPTS[0]] * 2, strength=[1.5, 3.0], sampling=sampling(NEW), seed=0)

    with running({"red": policy, "unmeasured": policy}) as engine:
        engine.ranges = {"red": {"red": held(0.0, 1.5)}, "unmeasured": {"unmeasured": None}}
        warned = Heard(engine, chat(PROMPTS[0]), strength=3.0)
        texts = [warned.text()]
        engine.outside = "clamp"
        clamped = Heard(engine, chat(PROMPTS[0]), strength=3.0)
        texts.append(clamped.text())
        engine.outside = "refuse"
        with pytest.raises(ControlError, match=r"strength 3 is outside the safe range 0 to 1\.5, in which toy/capability was"):
            Heard(engine, chat(PROMPTS[0]), strength=3.0)
        unmeasured = Heard(engine, chat(PROMPTS[0]), "unmeasured", strength=3.0)
        texts.append(unmeasured.text())

    assert texts == [beyond, inside, beyond]
    assert inside != beyond
    assert [each.reply.question.strength for each in (warned, clamped, unmeasured)] == [3.0, 1.5, 3.0]
    assert unmeasured.reply.question.warning is None
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert logged == [f"red: {each.reply.question.warning}" for each in (warned, clamped)]


def test_a_range_counts_for_a_strength_that_is_not_asked_for() -> None:
    with running({"red": attached("red", backbone("llama"))}) as alone:
        alone.ranges, alone.outside = {"red": {"red": held(0.0, 0.5)}}, "clamp"

        assert Heard(alone, "a").reply.question.strength == 0.5


def test_numbers_beyond_are_named_in_the_error_of_a_model_of_several(engine: Engine) -> None:
    (last,) = ask(engine, {"red": 2e38, "lora": 2e38}).all()

    assert last.asked_wrongly
    assert "strength=red 2e+38, lora 2e+38" in str(last.error)
