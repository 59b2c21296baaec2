"""What a run leaves on disk, whatever else fails."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from alignlab.tracking.ledger import Ledger, now


def test_a_file_that_was_never_written_reads_as_none(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "nowhere").read("status.json") is None


def test_a_file_is_replaced_whole_and_nothing_unfinished_stays(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    ledger.write("config.json", {"a": 1, "b": 2})
    ledger.write("config.json", {"a": 3})

    assert ledger.read("config.json") == {"a": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_write_that_fails_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write("config.json", {"a": 1})

    with pytest.raises(TypeError, match="object is not JSON serializable"):
        ledger.write("config.json", {"a": object()})

    assert ledger.read("config.json") == {"a": 1}


def test_the_folder_is_made_when_it_is_needed(tmp_path: Path) -> None:
    Ledger(tmp_path / "a" / "b").write("c/d.json", {})
    Ledger(tmp_path / "e").metrics(1, {})

    assert (tmp_path / "a" / "b" / "c" / "d.json").is_file()
    assert (tmp_path / "e" / "metrics.jsonl").is_file()


def test_a_status_has_its_state_its_time_and_what_belongs_to_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    ledger.status("failed", error="it broke")

    status = ledger.read("status.json") or {}
    assert (status["state"], status["error"]) == ("failed", "it broke")
    assert datetime.fromisoformat(status["time"]).tzinfo == timezone.utc


def test_metrics_are_read_back_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    ledger.metrics(1, {"fit/loss": 2.0})
    ledger.metrics(2, {"fit/loss": 1.0, "fit/grad_norm": 0.5})

    assert list(ledger.history()) == [{"step": 1, "fit/loss": 2.0}, {"step": 2, "fit/loss": 1.0, "fit/grad_norm": 0.5}]


def test_a_run_without_metrics_has_an_empty_history(tmp_path: Path) -> None:
    assert list(Ledger(tmp_path).history()) == []


def test_the_last_line_of_a_repeated_step_stands(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    for step, loss in [(1, 3.0), (2, 2.0), (2, 1.5), (3, 1.0)]:
        ledger.metrics(step, {"fit/loss": loss})

    assert [(entry["step"], entry["fit/loss"]) for entry in ledger.history()] == [(1, 3.0), (2, 1.5), (3, 1.0)]


def test_the_same_step_of_another_stage_is_another_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    ledger.metrics(1, {"fit/loss": 3.0})
    ledger.metrics(1, {"prefer/loss": 0.7})

    assert len(list(ledger.history())) == 2


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.metrics(1, {"fit/loss": 3.0})
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "fit/lo')

    assert list(ledger.history()) == [{"step": 1, "fit/loss": 3.0}]


def test_what_is_written_after_a_cut_line_is_not_lost_with_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "fit/lo', encoding="utf-8")

    ledger.metrics(2, {"fit/loss": 2.0})
    ledger.metrics(3, {"fit/loss": 1.0})

    assert [entry["step"] for entry in ledger.history()] == [2, 3]


def test_files_are_json_that_other_tools_read(tmp_path: Path) -> None:
    path = Ledger(tmp_path).write("report.json", {"title": "é", "values": [1.5, None]})

    assert json.loads(path.read_text(encoding="utf-8")) == {"title": "é", "values": [1.5, None]}


def test_now_is_utc_to_the_second() -> None:
    assert datetime.fromisoformat(now()).microsecond == 0
