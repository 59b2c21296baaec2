"""What holds for every table of every paper."""

from __future__ import annotations

import pytest

from tests.experiments.sweeps import cells, run_of, tables

TABLES = tables()
PAPER = [table for table in TABLES if not table.startswith("tiny/") and "/toy/" not in table]


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_of_a_table_is_a_run_of_its_own_that_fits_together(table: str) -> None:
    every = cells(table)

    runs = {(config.fingerprint, config.seed) for config in (run_of(table, *cell) for cell in every)}

    assert len(runs) == len(every) >= 2


@pytest.mark.parametrize("table", PAPER)
def test_no_toy_number_reaches_the_papers_scale(table: str) -> None:
    for cell in cells(table):
        configs = vars(run_of(table, *cell).sizing).values()

        assert not [config for config in configs if config and config.startswith("tiny")]
