"""Every file below experiments/ runs: two steps of each stage, and a tiny evaluation.

Of every eighth file the first cell runs; with MARK=fuzz, of all files every cell in which a row is met.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from alignlab.config import RunConfig, folder_of, parse
from run import run
from tests.experiments.sweeps import EXPERIMENTS, ON_GIVEN_DATA, ROOT, ROWS, cells, composed, model_config, name_of, tables
from tests.fuzzing import WHOLE, part_of

TABLES = tables()
FILES = {name for path in EXPERIMENTS.glob("**/*.yaml") if not (name := name_of(path)).startswith(ON_GIVEN_DATA)}
SMALL = {
    "data.pairs": 24,
    "data.test_pairs": 8,
    "data.corpus": 24,
    "evaluation.prompts": 4,
    "evaluation.pairs": 8,
    "evaluation.max_new_tokens": 4,
    "trainer.device": "cpu",
    "trainer.threads": 1,
}


def rows_of(table: str) -> set[str]:
    """The files that are rows of a table."""
    words = {word for cell in cells(table) for word in cell if word.startswith(ROWS)}
    return {word.removeprefix(ROWS).replace("=", "/") for word in words}


def below(name: str) -> set[str]:
    """The files that a file is laid over, and so on down."""
    entries = model_config(name).get("defaults", [])
    named = {entry.removeprefix("/experiment/") for entry in entries if isinstance(entry, str) and entry != "_self_"}
    return named | {lower for entry in named for lower in below(entry)}


def used_by(table: str) -> set[str]:
    """The files that a table is made of: those it is laid over, its rows, also those in its folder that have to be asked for by
    name, and what these are laid over."""
    rows = rows_of(table) | {name for name in FILES if name.rpartition("/")[0] == table}
    return below(table) | rows | {lower for row in rows for lower in below(row)}


USED = set(TABLES).union(*(used_by(table) for table in TABLES))
_CONFIG = OmegaConf.load(ROOT / "conf" / "model" / "tiny.yaml")
TINY = {f"model.{key}": _CONFIG[key] for key in ("name", "source", "path", "template")}
ELSEWHERE = {
    *(f"red/table{number}" for number in (1, 2, 3, 5, 6, 7, 8)),
    *(f"red/toy/table{number}" for number in (1, 2, 3)),
    *("tpt/paper", "tpt/params", "tpt/small", "tpt/t5", "tpt/toy/small", "tpt/toy/stories"),
}
"""Tables, and a run, whose data and kinds of model the stories do not stand in for; test_red_tables.py and test_tpt_tables.py
run a row of each."""
ALONE = sorted(FILES - USED - ELSEWHERE)
"""Runs of their own."""


def enough(file: str) -> Iterator[list[str]]:
    """Cells of a table in which each of its rows is met, the first in any case; a file that is no table is one cell."""
    met: set[str] = set()
    for place, cell in enumerate(cells(file) if file in TABLES else [[]]):
        rows = {word for word in cell if word.startswith(ROWS)}
        if place == 0 or rows - met:
            met |= rows
            yield cell


def small(table: str, cell: list[str], runs: Path) -> DictConfig:
    """A cell cut short, on the embedded model and its world in place of a checkpoint and data from the hub. What a config says
    about a model of the hub stays."""
    raw = copy.deepcopy(composed(table, *cell, "data=toy", "tracking=off", f"paths.runs={runs}"))
    embedded = TINY if raw.model.source == "hub" else {}
    for key, value in {**embedded, **SMALL, **shortened(parse(raw))}.items():
        OmegaConf.update(raw, key, value)
    return raw


def shortened(config: RunConfig) -> dict[str, Any]:
    """Two steps of four for each stage, one strength, and few held-out rows where a part is cut by number."""
    changes: dict[str, Any] = {}
    for stage in config.method.fits():
        changes |= {f"method.{stage}.epochs": None, f"method.{stage}.steps": 2, f"method.{stage}.batch": 4}
    if config.control.strengths:
        changes["control.strengths"] = [1.0]
    if config.data.halves is not None and config.data.halves.test is not None:
        changes["data.halves.test"] = 4
    return changes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs: what two tables have in common is run once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures have their own tests, and configs that are kept are not garbage: both would be half of the time."""
    monkeypatch.setattr("alignlab.finished.draw_curves", lambda _ledger, path: path)
    monkeypatch.setattr("alignlab.finished.draw_dial", lambda _rows, path: path)
    gc.freeze()


def every_cell() -> list[tuple[str, list[list[str]]]]:
    """Each file with the cells of it that are run."""
    files = [*(table for table in TABLES if table not in ELSEWHERE), *ALONE]
    cells_of = {file: enough(file) for file in part_of(files)}
    return [(file, list(found if WHOLE in os.environ else islice(found, 1))) for file, found in cells_of.items()]


@pytest.mark.fuzz
@pytest.mark.parametrize(("file", "tried"), every_cell())
def test_a_file_runs_with_each_of_its_rows(file: str, tried: list[list[str]], runs: Path) -> None:
    for cell in tried:
        raw = small(file, cell, runs)

        run(raw)

        folder = folder_of(parse(raw))
        losses = [value for line in lines(folder) for key, value in line.items() if key.endswith("/loss")]
        assert json.loads((folder / "report.json").read_text())["fingerprint"] in folder.parent.name
        assert all(math.isfinite(loss) for loss in losses)
        assert losses or not parse(raw).method.fits()


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run; none where nothing was trained or measured."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def test_a_file_that_no_table_uses_is_a_run_of_its_own() -> None:
    assert {"rahf/base", "tpt/t5"} == FILES - USED
