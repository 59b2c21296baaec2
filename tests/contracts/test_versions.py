"""A run never mixes versions of the code, and one damaged file costs what was in it: both end as a clean run does."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import alignlab
from alignlab import exports
from alignlab.errors import RunFolderError, StorageError
from alignlab.evaluation.report import BATCHES
from alignlab.evaluation.suites import Fluency
from alignlab.models.config import EMBEDDED
from alignlab.plan_text import _beginning
from alignlab.tracking import Identity, NoTracker
from alignlab.tracking.ledger import Ledger
from alignlab.training import stages
from alignlab.training.processes import COME_AGAIN
from alignlab.training.trainer import FitTrainer
from run import run
from tests.contracts.test_methods import composed, history, learned

SHORT = ("evaluation=off", "trainer.checkpoint_every_steps=1")


class PulledError(Exception):
    """Somebody pulled the plug."""


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("alignlab"), "propagate", True)
    caplog.set_level("INFO", logger="alignlab")
    return caplog


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the code another version."""

    def becomes(version: str) -> None:
        for module in ("training.stages", "tracking.ledger", "running", "files"):
            monkeypatch.setattr(f"alignlab.{module}.code_version", lambda: version)

    return becomes


def ended(error: type[BaseException], after: int) -> Callable[..., Any]:
    """`FitTrainer.compute_loss`, which raises an error behind so many batches."""
    real, made = FitTrainer.compute_loss, []

    def counted(self: FitTrainer, *given: Any, **more: Any) -> Any:
        made.append(self)
        if len(made) > after:
            raise error
        return real(self, *given, **more)

    return counted


def killed(folder: Path, method: str, *words: str, after: int = 2) -> None:
    """A run whose process ends behind a step: nothing is written any more."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FitTrainer, "compute_loss", ended(PulledError, after))
        patched.setattr("alignlab.training.processes.failed", lambda *_: None)
        with pytest.raises(PulledError):
            run(composed(folder, method, *SHORT, *words, steps=4))


def same(first: Path, second: Path, method: str) -> bool:
    one, other = learned(first, method), learned(second, method)
    return bool(one) and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_stage_that_was_begun_by_other_code_begins_anew_and_is_kept_under_its_own_key(
    code: Callable[[str], None], told: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    code("old")
    killed(tmp_path / "a", "sft")
    code("new")

    run(composed(tmp_path / "a", "sft", *SHORT, steps=4))

    key = json.loads((tmp_path / "a" / "run" / "stages" / "fit" / "done.json").read_text())["key"]
    assert "resumed from" not in told.text
    assert "fit: what an earlier run has left is of other code, libraries, data or settings; it is set aside as " in told.text
    assert (tmp_path / "a" / "run" / "stages" / "fit.aside-1" / "checkpoint-2").is_dir()
    assert [path.name for path in (tmp_path / "a" / ".store" / "stages").glob("*/")] == [key]
    assert [line["step"] for line in history(tmp_path / "a") if "fit/loss" in line] == [1, 2, 3, 4]
    run(composed(tmp_path / "clean", "sft", *SHORT, steps=4))
    assert same(tmp_path / "a", tmp_path / "clean", "sft")


def test_a_finished_stage_of_other_code_is_not_put_under_new_stages(code: Callable[[str], None], tmp_path: Path) -> None:
    code("old")
    killed(tmp_path / "a", "meet", after=5)  # controls is done, joint begun
    finished_before = tmp_path / "a" / "run" / "stages" / "controls" / "done.json"
    old = json.loads(finished_before.read_text())["key"]
    code("new")

    run(composed(tmp_path / "a", "meet", *SHORT, steps=4))

    assert json.loads(finished_before.read_text())["key"] != old
    assert {path.name for path in (tmp_path / "a" / "run" / "stages").glob("*/")} == {
        "controls",
        "joint",
        "controls.aside-1",
        "joint.aside-1",
    }


def test_a_finished_run_of_other_code_is_repeated_where_that_is_asked_for(
    code: Callable[[str], None], told: pytest.LogCaptureFixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code("old")
    run(composed(tmp_path / "a", "sft", *SHORT))
    code("new")

    run(composed(tmp_path / "a", "sft", *SHORT))
    left = json.loads((tmp_path / "a" / "run" / "env.json").read_text())["code"]
    run(composed(tmp_path / "a", "sft", *SHORT, "rerun=outdated"))

    assert "another version of the code made it; rerun=outdated repeats it" in capsys.readouterr().out
    assert (left, json.loads((tmp_path / "a" / "run" / "env.json").read_text())["code"]) == ("old", "new")


def test_a_damaged_result_is_named_and_computed_again(told: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    run(composed(tmp_path / "a", "sft", *SHORT))
    run(composed(tmp_path / "clean", "sft", *SHORT))
    config = tmp_path / "a" / "run" / "stages" / "fit" / "result" / "adapter_config.json"
    for damaged in (config, next((tmp_path / "a" / ".store" / "stages").glob("*/result/adapter_config.json"))):
        damaged.write_text("garbage")
    with pytest.raises(RunFolderError, match=r"stage fit is damaged \(result/adapter_config\.json has 7 bytes"):
        alignlab.load(tmp_path / "a" / "run")
    (tmp_path / "a" / "run" / "status.json").unlink()

    run(composed(tmp_path / "a", "sft", *SHORT))

    assert "is damaged (result/adapter_config.json has 7 bytes and had" in told.text
    assert "in the store is damaged" in told.text
    assert same(tmp_path / "a", tmp_path / "clean", "sft")
    assert alignlab.load(tmp_path / "a" / "run")
    assert stages.StageStore(tmp_path / "a" / ".store" / "stages").damage(_key(tmp_path / "a")) == ""


def _key(folder: Path) -> str:
    return str(json.loads((folder / "run" / "stages" / "fit" / "done.json").read_text())["key"])


GARBAGE = {"status.json": b"{", "report.json": b"[]", "config.json": b"\xff", "env.json": b"3", "evaluation.json": b"{"}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_garbage_file_of_a_run_ends_in_the_same_report(name: str, tmp_path: Path) -> None:
    words = ("evaluation.suites=[preference]", "folder=null")
    run(composed(tmp_path, "sft", *words))
    (report,) = tmp_path.glob("sft-*/seed-0/report.json")
    before = report.read_bytes()
    (report.parent / name).write_bytes(GARBAGE[name])
    (report.parent / "metrics.jsonl").write_bytes(b'{"step": 1}\n[]\n{"loss": 2}\n\xff\n3\n')

    run(composed(tmp_path, "sft", *words))

    assert report.read_bytes() == before


def test_a_run_whose_config_was_lost_goes_on_where_the_name_of_its_folder_tells_it(tmp_path: Path) -> None:
    run(composed(tmp_path, "sft", *SHORT, "folder=null"))
    (config,) = tmp_path.glob("sft-*/seed-0/config.json")
    before = config.read_bytes()
    for lost in (config, config.with_name("status.json")):
        lost.unlink()

    run(composed(tmp_path, "sft", *SHORT, "folder=null"))

    assert config.read_bytes() == before
    assert not list(config.parent.glob("stages/*.aside-*"))


def test_an_evaluation_goes_on_behind_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("evaluation.suites=[toy,fluency,preference]",)
    run(composed(tmp_path / "clean", "dpo", *words))
    real, asked = Fluency.measure, []

    def measured(self: Fluency, point: Any) -> Any:
        asked.append(point.strength)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(self, point)

    monkeypatch.setattr(Fluency, "measure", measured)
    with pytest.raises(KeyboardInterrupt):
        run(composed(tmp_path / "a", "dpo", *words))
    run(composed(tmp_path / "a", "dpo", *words))

    reports = [json.loads((tmp_path / name / "run" / "report.json").read_text())["results"] for name in ("clean", "a")]
    assert asked == [0.0, 1.0, 1.0]
    assert reports[0] == reports[1]


def test_an_evaluation_goes_on_behind_the_last_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("evaluation.suites=[toy,preference]", "control.strengths=[1.0]")
    monkeypatch.setattr("alignlab.evaluation.suites.HELD_OUT_PER_PASS", 2)
    monkeypatch.setattr("alignlab.models.answers.DECODE_ROWS", 2)
    real, written, ends = Ledger.append, [], [1, 7]

    def append(self: Ledger, name: str, content: dict[str, Any]) -> None:
        real(self, name, content)
        if name == BATCHES:
            written.append((content["name"], content["batch"]))
            if len(written) in ends:
                raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "append", append)
    for _ in ends:
        with pytest.raises(KeyboardInterrupt):
            run(composed(tmp_path / "a", "sft", *words))
    with (tmp_path / "a" / "run" / BATCHES).open("a") as file:
        file.write('{"name": "garbage", "batch": 0, "values": [0.0], "checksum": ""}\n{"na')
    run(composed(tmp_path / "a", "sft", *words))
    interrupted, written, ends = written, [], []
    run(composed(tmp_path / "clean", "sft", *words))

    reports = [json.loads((tmp_path / name / "run" / "report.json").read_text())["results"] for name in ("clean", "a")]
    assert reports[0] == reports[1]
    assert interrupted == written
    assert len(written) == 4 // 2 + 2 * 8 // 2  # answers, and pairs with the tuner and without
    assert not list(tmp_path.glob(f"*/run/{BATCHES}"))


def test_a_full_disk_is_one_sentence_and_a_finished_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] PytorchStreamWriter failed writing file data/3")

    monkeypatch.setattr("torch.save", full)

    with pytest.raises(StorageError, match=r"the disk is full; mend that, and the same command resumes"):
        run(composed(tmp_path, "sft", *SHORT))

    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "the disk is full" in status["error"]
    assert not list(tmp_path.glob("run/stages/*/checkpoint-*"))


def changed(run_folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another config in the folder of a finished run, as a stranger may have written it."""
    plain = yaml.safe_load((run_folder / "config.yaml").read_text())
    change(plain)
    (run_folder / "config.yaml").write_text(yaml.safe_dump(plain))


def test_a_strangers_run_folder_runs_no_code_unless_the_caller_allows_it(tmp_path: Path) -> None:
    run(composed(tmp_path, "sft", *SHORT))
    folder = tmp_path / "run"
    changed(folder, lambda plain: plain["model"].update(trust_remote_code=True))

    for opened in (lambda: alignlab.load(folder), lambda: exports.export(folder, tmp_path / "plain")):
        with pytest.raises(RunFolderError, match="asks to run code that its model brings"):
            opened()
    assert alignlab.load(folder, trust_remote_code=True)
    changed(folder, lambda plain: plain["model"].update(trust_remote_code=False, _target_="os.system"))
    with pytest.raises(alignlab.errors.ConfigError, match=r"unknown key model\._target_"):
        alignlab.load(folder)


def test_a_run_that_moves_with_its_model_loads_and_names_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    home = tmp_path / "home" / "lovelace"
    shutil.copytree(EMBEDDED / "tiny", home / "models" / "mine")
    monkeypatch.setenv("HOME", str(home))
    local = (
        "model=local",
        f"paths.runs={home}/not/yet",
        f"model.path={home}/models/mine",
        "tuner=lora",
        "model.template.format='{prompt}'",
    )
    run(composed(home / "work", "sft", *SHORT, *local))
    shutil.move(home, tmp_path / "elsewhere")

    files = [file for file in (tmp_path / "elsewhere" / "work" / "run").rglob("*") if file.suffix in (".json", ".yaml", ".md")]
    assert len(files) > 5
    assert [file for file in files if "lovelace" in file.read_text()] == []
    assert alignlab.load(tmp_path / "elsewhere" / "work" / "run")


def test_a_signal_while_planning_ends_as_in_training_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def plans_and_is_told_to_leave(_: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(5)

    monkeypatch.setattr("alignlab.planning.make_plan", plans_and_is_told_to_leave)
    before = signal.getsignal(signal.SIGUSR2)

    with pytest.raises(SystemExit) as left:
        run(composed(tmp_path, "sft", *SHORT))

    assert left.value.code == COME_AGAIN
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_signal_while_evaluating_ends_as_in_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("evaluation.suites=[toy,fluency]",)

    def is_told_to_leave(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(5)

    with monkeypatch.context() as patched:
        patched.setattr(Fluency, "measure", is_told_to_leave)
        with pytest.raises(SystemExit) as left:
            run(composed(tmp_path, "sft", *words))
    state = json.loads((tmp_path / "run" / "status.json").read_text())["state"]
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())["rows"]

    assert (left.value.code, state, list(kept)) == (COME_AGAIN, "preempted", ["0/toy"])
    run(composed(tmp_path, "sft", *words))


@pytest.mark.parametrize(
    ("after", "said", "planned"),
    [
        (0, "no checkpoint was made yet, so the same command begins anew", "it begins anew, since nothing was saved"),
        (2, "saved at step 2 of stage fit; the same command resumes there", "it goes on where that ended"),
    ],
)
def test_an_interruption_and_the_next_plan_promise_a_checkpoint_only_where_there_is_one(
    after: int, said: str, planned: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = composed(tmp_path, "sft", *SHORT, steps=4)
    monkeypatch.setattr(FitTrainer, "compute_loss", ended(KeyboardInterrupt, after))

    with pytest.raises(KeyboardInterrupt, match=f"^{said}$"):
        run(config)

    assert _beginning(config) == f"interrupted before; {planned}"


def test_two_people_with_the_same_run_write_into_two_runs_of_a_tracker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ids: list[str] = []

    def opened(_: object, identity: Identity) -> NoTracker:
        ids.append(identity.id)
        return NoTracker()

    monkeypatch.setattr("alignlab.tracking.weights_and_biases.open_run", opened)

    for name, word in (("ada", "force=false"), ("ada", "force=true"), ("bob", "force=false")):
        run(composed(tmp_path / name, "sft", *SHORT, "tracking=wandb", word))

    assert len(set(ids)) == 2
    assert ids[0] == ids[1]
