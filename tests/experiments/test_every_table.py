"""What holds for every table of every paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from tests.experiments.recorded import RECORD, Values, choice_values, table_values, unpacked
from tests.experiments.sweeps import distinct, run_of, tables, tried
from tests.fuzzing import part_of

TABLES = tables()
PAPER = [table for table in TABLES if not table.startswith("tiny/") and "/toy/" not in table]


@pytest.mark.slow  # 10,000 configs; what each composes to is held by the record below
@pytest.mark.parametrize("table", TABLES)
def test_every_cell_of_a_table_is_a_run_of_its_own_that_fits_together(table: str) -> None:
    every = tried(table)

    runs = {(config.fingerprint, config.seed) for config in (run_of(table, *cell) for cell in every)}

    assert len(runs) == len(every) >= 2


@pytest.mark.parametrize("table", PAPER)
def test_no_toy_number_reaches_the_papers_scale(table: str) -> None:
    for cell in distinct(table):
        configs = vars(run_of(table, *cell).sizing).values()

        assert not [config for config in configs if config and config.startswith("tiny")]


@pytest.mark.fuzz
@pytest.mark.parametrize("compose", [table_values, choice_values])
def test_every_config_composes_to_the_recorded_values(compose: Callable[[Iterable[str]], dict[str, Values]]) -> None:
    """`python -m tests.experiments.recorded` records them anew, where a value is changed on purpose or an experiment is new."""
    recorded = unpacked(RECORD.read_text())

    made = compose(part_of(sorted(recorded)))

    assert made
    assert differences(recorded, made) == []


def differences(recorded: dict[str, Values], made: dict[str, Values]) -> list[str]:
    """What differs, a line per command line and key."""
    return [
        f"{line}: {key}={recorded[line].get(key)} is now {values.get(key)}"
        for line, values in made.items()
        for key in sorted({*values, *recorded[line]})
        if values.get(key) != recorded[line].get(key)
    ]
