"""W&B: an offline run that can be read back, and no outage that reaches the training."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alignlab.errors import ConfigError
from alignlab.tracking import TRACKERS, Identity, NoTracker, WandbConfig
from alignlab.tracking.weights_and_biases import WandbTracker, _mode, open_run
from tests.unit.conftest import checked

ROWS = [{"strength": 1.0, "suite": "toy", "metric": "reward", "value": 0.5}]


def config(mode: str = "auto") -> WandbConfig:
    return WandbConfig("wandb", "alignlab", None, mode, None, timeout_seconds=30.0)


def identity(folder: Path) -> Identity:
    return Identity("abc-0", "dpo-lora-0", "dpo-lora", "dpo", ("dpo", "toy"), folder, {"seed": 0, "method": {"beta": 0.1}})


class Broken:
    """A wandb run whose connection is gone."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, _values: object) -> None:
        self.calls += 1
        raise ConnectionError("gone")

    def finish(self, **_: object) -> None:
        self.calls += 1
        raise ConnectionError("gone")


class Recording:
    """A wandb run that keeps what it is given."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def no_wish(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without wishes."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return monkeypatch


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What alignlab says, also where an earlier run took its lines for itself."""
    monkeypatch.setattr(logging.getLogger("alignlab"), "propagate", True)
    return caplog


def mode_of_a_new_process(home: Path) -> str:
    """What `auto` means to a user with this home; wandb looks for a login once per process."""
    ours = ("WANDB_", "NETRC", "HOME")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)} | {"HOME": str(home)}
    imports = "from alignlab.tracking import WandbConfig; from alignlab.tracking.weights_and_biases import _mode"
    command = [sys.executable, "-c", f"{imports}; print(_mode({config('auto')!r}))"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment).stdout.strip()


def records(folder: Path) -> list[dict[str, Any]]:
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_an_offline_run_can_be_read_back_with_its_identity_and_its_metrics(tmp_path: Path) -> None:
    tracker = open_run(config("offline"), identity(tmp_path))
    tracker.log(1, {"fit/loss": 0.5})
    tracker.log(2, {"fit/loss": 0.25})
    tracker.results(ROWS, [])
    tracker.close(failed=True)

    read = records(tmp_path)

    (run,) = [record["run"] for record in read if record["type"] == "run"]
    assert (run["run_id"], run["display_name"], run["run_group"]) == ("abc-0", "dpo-lora-0", "dpo-lora")
    assert (run["job_type"], run["project"], run["tags"]) == ("dpo", "alignlab", ["dpo", "toy"])
    assert run["config"]["update"]["method"] == {"beta": 0.1}
    history = [record["history"]["item"] for record in read if record["type"] == "history"]
    assert [(item["step"], item["fit/loss"]) for item in history[:2]] == [(1, 0.5), (2, 0.25)]
    assert history[2]["results.nrows"] == 1
    assert not [record for record in read if record["type"] == "artifact"]
    assert [record["exit"]["exit_code"] for record in read if record["type"] == "exit"] == [1]


def test_a_line_of_metrics_carries_its_step_as_a_value() -> None:
    run = Recording()

    WandbTracker(run).log(7, {"fit/loss": 0.5})

    assert run.logged == [{"fit/loss": 0.5, "step": 7}]


@pytest.mark.parametrize(("failed", "exit_code"), [(True, 1), (False, 0)])
def test_a_run_is_closed_as_failed_or_as_finished(failed: bool, exit_code: int) -> None:
    run = Recording()

    WandbTracker(run).close(failed=failed)

    assert run.exit_code == exit_code


def test_a_tracker_that_breaks_says_so_once_and_never_stops_a_run(heard: pytest.LogCaptureFixture) -> None:
    run = Broken()
    tracker = WandbTracker(run)

    tracker.log(1, {"fit/loss": 0.5})
    tracker.log(2, {"fit/loss": 0.5})
    tracker.results(ROWS, [Path("no.png")])
    tracker.close(failed=False)

    assert run.calls == 1
    assert [record.message for record in heard.records] == [
        "W&B stopped working (gone); the run continues, and its own files are complete."
    ]


def test_a_tracker_that_cannot_start_leaves_the_run_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("no service")

    monkeypatch.setattr("wandb.init", refuse)

    tracker = open_run(config("offline"), identity(tmp_path))

    assert isinstance(tracker, NoTracker)
    assert [record.message for record in heard.records] == ["W&B could not start (no service); the run continues without it."]


@pytest.mark.parametrize(("logged_in", "mode"), [(True, "online"), (False, "offline")])
def test_auto_is_online_for_those_who_are_logged_in(logged_in: bool, mode: str, no_wish: pytest.MonkeyPatch) -> None:
    no_wish.setattr("wandb.login", lambda **_: logged_in)

    assert _mode(config("auto")) == mode


def test_nobody_is_ever_asked_for_a_login(no_wish: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    no_wish.setattr("wandb.login", lambda **words: bool(asked.append(words)))

    _mode(config("auto"))

    assert [words["prompt"] for words in asked] == [False]


def test_online_without_a_login_is_kept_offline_and_says_so(
    no_wish: pytest.MonkeyPatch, heard: pytest.LogCaptureFixture
) -> None:
    no_wish.setattr("wandb.login", lambda **_: False)

    assert _mode(config("online")) == "offline"
    assert "nobody is logged in" in heard.text


def test_a_login_counts_at_a_host_of_wandb_and_at_no_other(tmp_path: Path) -> None:
    machines = ("api.wandb.ai", "api.forge.coreweave.com", "example.org")
    for machine in machines:
        netrc = tmp_path / machine / ".netrc"
        netrc.parent.mkdir()
        netrc.write_text(f"machine {machine} login user password {'0' * 40}\n", encoding="utf-8")
        netrc.chmod(0o600)

    with ThreadPoolExecutor() as together:  # each waits for a server
        modes = list(together.map(mode_of_a_new_process, [tmp_path / machine for machine in machines]))

    assert modes == ["online", "online", "offline"]


def test_the_environment_wins_over_the_config(no_wish: pytest.MonkeyPatch) -> None:
    no_wish.setenv("WANDB_MODE", "disabled")

    assert _mode(config("online")) == "disabled"


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.mode='always' is not known"):
        checked("tracking", config("always"))


def test_no_time_to_wait_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"timeout_seconds=0.0 must be above 0"):
        checked("tracking", WandbConfig("wandb", "alignlab", None, "auto", None, timeout_seconds=0))


def test_tracking_off_is_no_tracker(tmp_path: Path) -> None:
    entry = TRACKERS["off"]

    tracker = entry.build(entry.config(name="off"), identity(tmp_path))
    tracker.log(1, {"fit/loss": 0.5})
    tracker.results(ROWS, [])
    tracker.close(failed=True)

    assert list(tmp_path.iterdir()) == []
