"""What a process does that is asked to leave: in training, elsewhere, under a launcher, and at the edges of a stage."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.data.encode import Limits, chosen
from alignlab.data.source import Source, Split
from alignlab.errors import ConfigError
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss, Record
from alignlab.training import processes
from alignlab.training.objectives import nll
from alignlab.training.processes import COME_AGAIN, Preemption
from alignlab.training.stages import Session, TrainStage
from alignlab.training.trainer import SaveAndLeave, latest
from tests.bits import assert_same_bits
from tests.conftest import CODEC, backbone
from tests.unit.conftest import PAIRS, attached, fit_config, session_in

RECORDS = tuple(Record.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS))
SOURCE = Source("made", {"train": lambda: Split(RECORDS)})
LEFT = f"^{COME_AGAIN}$"
"""The status of a process that was asked to leave."""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Outside submitit; and the tests' own process survives a signal that nobody heeds."""
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    monkeypatch.delenv("SUBMITIT_PREEMPT_SIGNAL", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(name: str = "USR2") -> None:
    os.kill(os.getpid(), signal.Signals[f"SIG{name}"])


@dataclass
class Signalled:
    """nll, in whose n-th call a signal comes."""

    call: int
    made: int = 0

    def __call__(self, policy: Policy, batch: Batch) -> Loss:
        self.made += 1
        if self.made == self.call:
            send()
        return nll(policy, batch)


def train(session: Session, objective: Any = nll) -> dict[str, torch.Tensor]:
    """Six steps of two micro-batches; checkpoints at 4 and at the end."""
    policy = attached("lora", backbone("llama"), spread=0.0)
    stage = TrainStage("fit", "train", chosen, objective, fit_config(), None)
    work = stage.prepare(SOURCE, CODEC, Limits(128, "error"))
    with session.preemption.heeded(lambda: session.ledger.status("preempted")):
        stage.run(policy, work, session)
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def session(folder: Path) -> Session:
    return session_in(folder, micro_batch=1, checkpoint_every_steps=4)


def test_in_training_the_step_is_ended_and_saved_before_the_process_leaves(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        train(session(tmp_path), Signalled(call=5))  # the first half of step 3

    kept = latest(tmp_path / "stages" / "fit")
    assert left.value.code == COME_AGAIN
    assert kept is not None
    assert kept.name == "checkpoint-3"
    assert (session(tmp_path).ledger.read("status.json") or {})["state"] == "preempted"


@pytest.mark.parametrize("call", [5, 12], ids=["in the middle", "in the last step"])
def test_a_run_that_left_ends_with_the_weights_of_one_that_stayed(tmp_path: Path, call: int) -> None:
    whole = train(session(tmp_path / "whole"))
    with pytest.raises(SystemExit, match=LEFT):
        train(session(tmp_path / "left"), Signalled(call=call))

    again = train(session(tmp_path / "left"))

    assert_same_bits(again, whole)


def test_outside_training_it_leaves_at_once() -> None:
    said: list[str] = []

    def work() -> None:
        send("TERM")
        said.append("went on")

    with pytest.raises(SystemExit) as left, Preemption().heeded(lambda: said.append("said")):
        work()

    assert left.value.code == COME_AGAIN
    assert said == ["said"]


def test_the_launcher_is_handed_the_signal_after_all_is_said() -> None:
    order: list[object] = []
    signal.signal(signal.SIGUSR2, lambda number, _: order.append(number))

    with pytest.raises(SystemExit, match=LEFT), Preemption().heeded(lambda: order.append("said")):
        send()

    assert order == ["said", signal.SIGUSR2]


def test_an_error_of_the_launcher_comes_through() -> None:
    def refuse(*_: object) -> None:
        raise TimeoutError("no turn left")

    signal.signal(signal.SIGUSR2, refuse)

    with pytest.raises(TimeoutError, match="no turn left"), Preemption().heeded(lambda: None):
        send()


@pytest.mark.parametrize(
    ("status", "expected", "said"),
    [(-signal.SIGTERM, SystemExit, LEFT), (1, subprocess.CalledProcessError, "returned non-zero exit status 1")],
)
def test_a_command_that_was_ended_because_its_job_goes_back_into_the_queue_has_not_failed(
    status: int, expected: type[BaseException], said: str
) -> None:
    def requeue(*_: object) -> None:
        raise subprocess.CalledProcessError(status, "scontrol requeue")

    signal.signal(signal.SIGUSR2, requeue)

    with pytest.raises(expected, match=said), Preemption().heeded(lambda: None):
        send()


def test_behind_it_signals_go_where_they_went_before() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}

    with Preemption().heeded(lambda: None):
        inside = {number: signal.getsignal(number) for number in before}

    assert {number: signal.getsignal(number) for number in before} == before
    assert all(inside[number] != before[number] for number in before)


def test_under_submitit_sigterm_stays_submitits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    before = signal.getsignal(signal.SIGTERM)

    with Preemption().heeded(lambda: None):
        assert signal.getsignal(signal.SIGTERM) == before


def test_the_signal_can_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")

    with pytest.raises(SystemExit, match=LEFT), Preemption().heeded(lambda: None):
        send("USR1")


def test_a_signal_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "SIGUSR2")

    with pytest.raises(ConfigError, match="SUBMITIT_PREEMPT_SIGNAL=SIGUSR2 is not a signal here"):
        Preemption().heeded(lambda: None).__enter__()


def test_an_exit_that_nobody_asked_for_is_none_of_its_business() -> None:
    said: list[str] = []

    with pytest.raises(SystemExit) as left, Preemption().heeded(lambda: said.append("said")):
        raise SystemExit(3)

    assert left.value.code == 3
    assert said == []


def test_in_another_thread_nothing_is_changed() -> None:
    before, inside = signal.getsignal(signal.SIGUSR2), []

    def look() -> None:
        with Preemption().heeded(lambda: None):
            inside.append(signal.getsignal(signal.SIGUSR2))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()

    assert inside == [before]


def test_a_process_that_got_no_signal_leaves_with_the_one_that_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "gathered", lambda word: [word, True])
    control = type("Control", (), {"should_save": False})()
    said: list[str] = []
    preemption = Preemption()

    callback = SaveAndLeave(preemption)
    callback.on_step_end(None, None, control)
    with pytest.raises(SystemExit, match=LEFT), preemption.heeded(lambda: said.append("said")), preemption.between_steps():
        callback.on_save(None, None, control)

    assert control.should_save
    assert said == ["said"]
