"""Small courses of MEET: forms on small backbones, its stages, and what is looked at after a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab.data.classes import Classes, classed, find
from alignlab.data.config import ClassesConfig
from alignlab.data.encode import Limits
from alignlab.data.source import Source, Split
from alignlab.methods.controlled import MeetConfig, meet
from alignlab.models.policy import Policy
from alignlab.records import Record, Response
from alignlab.training.stages import Session, TrainStage
from tests.conftest import CODEC
from tests.contracts.controls import THREE, Case, learned
from tests.unit.conftest import PAIRS, fit_config, session_in

RECORDS = tuple(Record.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS))
PLAIN_SOURCE = Source("made", {name: lambda: Split(RECORDS) for name in ("train", "test")})
SOURCE = classed(PLAIN_SOURCE, find(ClassesConfig("pairs", ["good", "bad"], 2, []), PLAIN_SOURCE))
TEXTS = [(prompt, text) for prompt, *texts in PAIRS for text in texts]
THREE_RECORDS = tuple(
    Record(f"row {number}", prompt, (Response(text, label=THREE[number % 3]),)) for number, (prompt, text) in enumerate(TEXTS)
)
THREE_SOURCE = classed(
    Source("three", {"train": lambda: Split(THREE_RECORDS)}), Classes(THREE, lambda response: str(response.label))
)
LIMITS = Limits(120, "error")
FORMS = (
    Case("token", "llama"),
    Case("soft_prompt", "gpt2", settings={"length": 3}),
    Case("lora", "llama"),
)
TEXT = Case("text", "llama")
SOFT = FORMS[1]
RATE, CONTROL_RATE = 1e-3, 2e-2


def stage(name: str, *, steps: int = 3, control_rate: float | None = CONTROL_RATE, **changes: Any) -> TrainStage:
    """One stage alone, with as many steps as are asked for."""
    made: TrainStage = stages([name], steps=(steps - 1, 1), control_rate=control_rate, **changes)[0]
    return made


def stages(names: Sequence[str], *, steps: tuple[int, int], control_rate: float | None = CONTROL_RATE, **changes: Any) -> Any:
    """The stages of MEET; `steps` of each in the config."""
    controls, joint = (fit_config(steps=count, **{"learning_rate": RATE, **changes}) for count in steps)
    return meet(MeetConfig("meet", joint, control_rate, list(names), controls)).stages


def run(made: TrainStage, policy: Policy, folder: Path, source: Source = SOURCE) -> Session:
    """The session of a stage that was run in a folder."""
    session = session_in(folder)
    made.run(policy, made.prepare(source, CODEC, LIMITS), session)
    return session


def weights(policy: Policy) -> dict[str, Tensor]:
    """Every parameter by name, as it is now."""
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


def moved(policy: Policy, before: dict[str, Tensor]) -> set[str]:
    """The names of parameters that are other numbers now."""
    return {name for name, tensor in weights(policy).items() if not torch.equal(tensor, before[name])}


def of_the_control(policy: Policy) -> set[str]:
    """The names of the control's parameters."""
    own = {id(parameter) for parameter in learned(policy)}
    return {name for name, parameter in policy.model.named_parameters() if id(parameter) in own}


def losses(session: Session, name: str) -> dict[int, float]:
    """The loss of each step."""
    return {entry["step"]: entry[f"{name}/loss"] for entry in session.ledger.history() if f"{name}/loss" in entry}
