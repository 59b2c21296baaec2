"""report.json and the table that is shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from alignlab.errors import MeasureError
from alignlab.evaluation.report import Row, refuse_unmeasured, show, write_report
from alignlab.tracking.ledger import Ledger

ROWS = [
    Row(0.0, "dial", "toy", "reward", 0.01, 128, -0.05, 0.06),
    Row(1.0, "dial", "toy", "reward", 0.62, 128, 0.55, 0.69),
    Row(1.0, "dial", "fluency", "perplexity", 3.21, 120, 3.0, 3.4),
]
NAMES = {"fingerprint": "0123abcd", "method": "red", "tuner": "red", "model": "tiny", "data": "toy", "seed": 0}


def test_a_report_names_the_run_its_headline_and_its_rows(tmp_path: Path) -> None:
    made = write_report(Ledger(tmp_path), NAMES, ROWS)

    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert {key: content[key] for key in NAMES} == NAMES
    assert content["headline"] == {"metric": "toy/reward", "value": 0.62}
    assert content["results"][0] == {
        "strength": 0.0,
        "control": "dial",
        "suite": "toy",
        "metric": "reward",
        "value": 0.01,
        "n": 128,
        "low": -0.05,
        "high": 0.06,
    }
    assert (made.path, made.value, len(content["results"])) == (tmp_path / "report.json", 0.62, 3)


def test_a_run_without_evaluation_has_a_report_without_a_headline(tmp_path: Path) -> None:
    made = write_report(Ledger(tmp_path), NAMES, [])

    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (content["headline"], content["results"], made.value) == (None, [], None)


def test_the_table_has_a_line_per_metric_and_a_column_per_strength(tmp_path: Path) -> None:
    console = Console(width=120, color_system=None)

    with console.capture() as said:
        show(write_report(Ledger(tmp_path), NAMES, ROWS), console)

    lines = said.get().splitlines()
    assert sum("strength 0" in line and "strength 1" in line for line in lines) == 1
    assert sum("toy/reward" in line and "0.010 -0.050..0.060" in line and "0.620 0.550..0.690" in line for line in lines) == 1
    assert sum("fluency/perplexity" in line and " - " in line and "3.210" in line for line in lines) == 1


@pytest.mark.parametrize("width", [60, 100, 140])
def test_no_number_is_lost_where_the_columns_do_not_fit(width: int, tmp_path: Path) -> None:
    console = Console(width=width, color_system=None)
    rows = [Row(s, "dial", "toy", "reward", s + 0.001, 8, s - 0.05, s + 0.052) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]

    with console.capture() as said:
        show(write_report(Ledger(tmp_path), NAMES, rows), console)

    shown = said.get()
    assert all(len(line) <= width for line in shown.splitlines())
    assert all(f"strength {row.strength:g} " in shown for row in rows)
    assert all(f"{row.value:.3f} {row.low:.3f}..{row.high:.3f}" in shown for row in rows)


def test_a_report_without_rows_shows_nothing(tmp_path: Path) -> None:
    console = Console(width=120)

    with console.capture() as said:
        show(write_report(Ledger(tmp_path), NAMES, []), console)

    assert said.get() == ""


UNMEASURED = Row(1.0, "dial", "fluency", "perplexity", math.nan, 0, None, None, note="4 of 4 texts left out: empty")


def test_what_was_left_out_of_a_number_stands_in_its_row_and_under_the_table(tmp_path: Path) -> None:
    console = Console(width=120, color_system=None)
    noted = replace(ROWS[2], note="8 of 128 texts left out: empty")

    with console.capture() as said:
        show(write_report(Ledger(tmp_path), NAMES, [*ROWS[:2], noted]), console)

    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row.get("note") for row in content["results"]] == [None, None, "8 of 128 texts left out: empty"]
    assert said.get().splitlines()[-1] == "fluency/perplexity at strength 1: 8 of 128 texts left out: empty"


def test_what_could_not_be_measured_is_no_number_of_a_report_and_refuses_it(tmp_path: Path) -> None:
    made = write_report(Ledger(tmp_path), NAMES, [UNMEASURED, *ROWS])

    content = json.loads(made.path.read_text(encoding="utf-8"))
    assert (content["headline"], made.value, len(content["results"])) == (None, None, 3)
    assert [row["n"] for row in content["unmeasured"]] == [0]
    assert "value" not in content["unmeasured"][0]
    with pytest.raises(
        MeasureError, match=r"^fluency/perplexity could not be measured at dial 1 \(4 of 4 texts left out: empty\)"
    ):
        refuse_unmeasured(made.path)


def test_a_report_with_every_number_is_not_refused(tmp_path: Path) -> None:
    refuse_unmeasured(write_report(Ledger(tmp_path), NAMES, ROWS).path)
