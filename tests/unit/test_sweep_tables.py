"""The table of a sweep: what a cell holds, what is missing, and how a row stands to the baseline."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pandas as pd
import pytest

from alignlab.__main__ import main
from alignlab.errors import ConfigError, RunFolderError
from alignlab.tables.render import latex, long_csv, markdown, sections_of
from alignlab.tables.sweep import Selection, Table, aggregate, difference, read_sweep, results_frame, table_of
from alignlab.tracking.sweeps import SweepLedger
from tests.unit.made_sweeps import ENVIRONMENT, MadeSweep, number

RED, LORA = (0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 3.0, 7.0)
"""Rewards by seed: their differences are 0, 1, 3 and 7."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """red and lora at four seeds; rest: one done, one failed, one missing, one done without the metric; and gone."""
    folder = tmp_path_factory.mktemp("runs")
    sweep = MadeSweep(folder, "red/toy/t", ["experiment=red/toy/t"])
    for row, values in (("red", RED), ("lora", LORA)):
        for seed, value in enumerate(values):
            sweep.done(row, seed, [number("toy/reward", value), number("toy/capability", 0.5), number("toy/reward", 0.25, 2.0)])
    sweep.done("rest", 0, [number("toy/reward", 0.75), number("toy/capability", 0.5)])
    sweep.failed("rest", 1, "the loss is nan")
    sweep.job("rest", 2)
    sweep.done("rest", 3, [number("toy/capability", 0.5)])
    sweep.failed("gone", 0, "out of memory")
    return folder


@pytest.fixture(scope="module")
def table(runs: Path) -> Table:
    return table_of(read_sweep(runs, "red/toy/t"), Selection())


def words(table: Table, suite: str = "toy") -> pd.DataFrame:
    (section,) = (section for section in sections_of(table, None, Path("nowhere")) if section.title == suite)
    return section.cells.set_index("row")


def test_a_cell_is_the_mean_over_seeds_with_the_sample_deviation_and_the_lowest_and_the_highest(table: Table) -> None:
    found = aggregate(table.rows[1], "toy/reward")

    assert found is not None
    assert (found.mean, found.lowest, found.highest, found.seeds, found.items) == (2.75, 0.0, 7.0, 4, (8,))
    # Squares of -2.75, -1.75, 0.25 and 4.25 sum to 28.75, over three.
    assert found.deviation == pytest.approx((28.75 / 3) ** 0.5)


def test_without_items_a_difference_has_students_interval_over_seeds_and_says_so(table: Table) -> None:
    made = difference(table, table.rows[1], "toy/reward")

    assert made is not None
    assert (made.value, made.seeds, made.items) == (2.75, 4, None)
    # t at 3 degrees of freedom is 3.182446; the sample deviation is the root of 28.75 / 3
    half = 3.182446 * (28.75 / 3) ** 0.5 / 2
    assert [made.low, made.high] == pytest.approx([2.75 - half, 2.75 + half], rel=1e-6)
    assert words(table).loc["lora", "reward - red"] == f"+2.750 [{2.75 - half:+.3f}, {2.75 + half:+.3f}] (by seeds)"


def test_with_items_a_difference_is_paired_by_item(tmp_path: Path) -> None:
    # every item of lora is 0.1 or 0.3 above red's own, however far apart the items are
    sweep = MadeSweep(tmp_path, "t")
    for row, more in (("red", (0.0, 0.0)), ("lora", (0.1, 0.3))):
        for seed in (0, 1):
            run = sweep.done(row, seed, [number("toy/reward", 0.0)])
            line = {"strength": 1.0, "control": "dial", "suite": "toy", "metric": "reward", "scale": ""}
            values = {f"item {k}": 100.0 * k + more[k % 2] for k in range(40)}
            run.write("evaluation.json", {"key": "k", "rows": {"0/toy": [{**line, "items": values}]}})
    made = table_of(read_sweep(tmp_path, "t"), Selection())

    found = difference(made, made.rows[1], "toy/reward")

    assert found is not None
    assert (found.value, found.seeds, found.items) == (pytest.approx(0.2), 2, 40)
    # the mean of 40 draws of 0.1 or 0.3: standard error 0.1 / root 40
    assert [found.low, found.high] == pytest.approx([0.2 - 1.96 * 0.1 / 40**0.5, 0.2 + 1.96 * 0.1 / 40**0.5], abs=0.006)
    assert words(made).loc["lora", "reward - red"] == f"+0.200 [{found.low:+.3f}, {found.high:+.3f}]"


def with_items(sweep: MadeSweep, row: str, seed: int, values: list[float], scale: str = "", strength: float = 1.0) -> None:
    """A finished job that has kept the values of its items, under a metric with two parts in its name."""
    run = sweep.done(row, seed, [number("harness/task/score", sum(values) / len(values), strength)])
    line = {"strength": strength, "control": "dial", "suite": "harness", "metric": "task/score", "scale": scale}
    items = {f"item {place}": value for place, value in enumerate(values)}
    run.write("evaluation.json", {"key": "k", "rows": {"0/harness": [{**line, "items": items}]}})


def test_a_single_seed_is_compared_by_its_items_under_their_scale_at_any_strength(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    for row, more in (("red", 0.0), ("lora", math.log(3))):
        with_items(sweep, row, 0, [more] * 3 + [0.0] * 3, "exp", strength=0.0)
    made = table_of(read_sweep(tmp_path, "t"), Selection(strengths=None))

    found = difference(made, made.rows[1], "harness/task/score")

    assert found is not None
    assert (found.seeds, found.items) == (1, 6)
    assert found.value == pytest.approx(3**0.5 - 1)  # the geometric mean of three and one, less one
    assert 0 <= found.low < found.value < found.high <= 2


def test_where_one_of_two_rows_has_kept_no_items_the_difference_is_over_seeds(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    for seed in (0, 1):
        sweep.done("red", seed, [number("harness/task/score", 0.0)])
        with_items(sweep, "lora", seed, [float(seed)] * 6)
    made = table_of(read_sweep(tmp_path, "t"), Selection())

    found = difference(made, made.rows[1], "harness/task/score")

    assert found is not None
    assert (found.value, found.seeds, found.items) == (0.5, 2, None)


@pytest.mark.parametrize("content", [{"rows": 3}, {"rows": {"0/toy": [{}]}}, {"rows": {"0/toy": 1}}])
def test_items_that_cannot_be_read_are_none(content: dict[str, object], tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    sweep.done("red", 0, [number("toy/reward", 0.0)]).write("evaluation.json", content)

    (line,) = table_of(read_sweep(tmp_path, "t"), Selection()).rows

    assert line.items("toy/reward") == {}


def test_the_baseline_is_not_compared_with_itself(table: Table) -> None:
    assert table.baseline == "red"
    assert difference(table, table.rows[0], "toy/reward") is None


def test_another_baseline_turns_the_signs(runs: Path) -> None:
    made = table_of(read_sweep(runs, "red/toy/t"), Selection(baseline="lora"))

    against = difference(made, made.rows[0], "toy/reward")
    assert against is not None
    assert against.value == -2.75


def test_seeds_without_a_number_are_marked_and_not_counted_as_zero(table: Table) -> None:
    rest = words(table).loc["rest"]

    assert rest["seeds"] == "2/4, 1 failed, 1 missing"
    assert rest["reward"] == "0.750 (1/4, 1 failed, 1 missing, 1 not measured)"
    assert rest["capability"] == "0.500 ± 0.000 (2/4, 1 failed, 1 missing)"


def test_a_seed_that_the_table_does_not_name_is_told(tmp_path: Path) -> None:
    made = MadeSweep(tmp_path, "small")
    for seed in (0, 7):
        made.done("red", seed, [number("toy/reward", 0.5)])
    ledger = SweepLedger(tmp_path, "small")
    ledger.declare([], ledger.jobs(), seeds=[0])

    (line,) = table_of(read_sweep(tmp_path, "small"), Selection((), (1.0,), "")).rows

    assert line.mark("toy/reward") == "1 extra seed"


def test_seeds_that_failed_beside_one_that_did_not_are_counted_and_so_are_two_that_nobody_named(tmp_path: Path) -> None:
    made = MadeSweep(tmp_path, "t")
    for seed in (0, 8, 9):
        made.done("red", seed, [number("toy/reward", 0.5)])
    for seed in (1, 2):
        made.failed("red", seed, "no")
    ledger = SweepLedger(tmp_path, "t")
    ledger.declare([], ledger.jobs(), seeds=[0, 1, 2])

    (line,) = table_of(read_sweep(tmp_path, "t"), Selection()).rows

    assert line.mark("toy/reward") == "3/5, 2 failed, 2 extra seeds"
    assert (line.row, line.jobs[0].model) == ("red", "tiny")


def test_one_pair_has_no_interval_and_says_so(table: Table) -> None:
    assert words(table).loc["rest", "reward - red"] == "+0.750 (1 pair: no interval)"


def test_a_row_without_a_finished_seed_says_why(table: Table) -> None:
    gone = words(table).loc["gone"]

    assert gone[["seeds", "reward", "capability"]].tolist() == ["0/1, 1 failed", "failed", "failed"]


def test_strengths_are_one_unless_asked_for(runs: Path, table: Table) -> None:
    every = table_of(read_sweep(runs, "red/toy/t"), Selection(strengths=None))

    assert [line.point for line in table.rows] == ["1", "1", "1", ""]
    assert [line.point for line in every.rows] == ["1", "2", "1", "2", "1", ""]
    assert [line.row for line in table.rows] == ["red", "lora", "rest", "gone"]
    assert [(line.row, line.point) for line in table.all_rows] == [(line.row, line.point) for line in every.rows]


def test_a_row_is_compared_at_its_own_strength_alone(runs: Path) -> None:
    every = table_of(read_sweep(runs, "red/toy/t"), Selection(strengths=None))
    at_two = table_of(read_sweep(runs, "red/toy/t"), Selection(strengths=(2.0,)))

    values = [made.value if (made := difference(every, line, "toy/reward")) else None for line in every.rows]

    assert values == [None, None, 2.75, 0.0, 0.75, None]
    assert [line.point for line in at_two.rows] == ["2", "2", "", ""]


def test_the_metrics_that_are_asked_for_are_those_of_the_table(runs: Path, tmp_path: Path) -> None:
    MadeSweep(tmp_path, "new").job("red", 0)

    made, unmeasured = (
        table_of(read_sweep(folder, name), Selection(metrics=("toy/capability",)))
        for folder, name in ((runs, "red/toy/t"), (tmp_path, "new"))
    )

    assert made.metrics == unmeasured.metrics == ("toy/capability",)


def test_the_numbers_of_all_jobs_are_a_frame_with_their_row_settings_and_seed(runs: Path, tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    sweep.done("red", 0, [number("toy/reward", 0.5)], {"model": "a"})
    sweep.done("lora", 1, [number("toy/reward", 0.25)], {"model": "b", "tuner": "c"})
    MadeSweep(tmp_path, "new").job("red", 0)

    frame = results_frame(read_sweep(tmp_path, "t"))

    assert frame[["row", "model", "tuner", "seed", "value"]].values.tolist() == [
        ["red", "a", "none", 0, 0.5],
        ["lora", "b", "c", 1, 0.25],
    ]
    with pytest.raises(RunFolderError, match=r"^no job of new has a number yet; 1 missing\.$"):
        results_frame(read_sweep(tmp_path, "new"))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (Selection(strengths=(7.0, 8.0)), r"was measured at --strength 7 8; known: 1, 2, or all"),
        (Selection(metrics=("toy/rewrad",)), r"unknown metric 'toy/rewrad'; did you mean toy/reward"),
        (Selection(baseline="rde"), r"unknown baseline 'rde'; did you mean red"),
    ],
)
def test_what_a_sweep_does_not_have_is_answered_with_what_it_has(runs: Path, asked: Selection, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        table_of(read_sweep(runs, "red/toy/t"), asked)


def test_a_sweep_that_nobody_started_is_answered_with_those_that_there_are(runs: Path) -> None:
    with pytest.raises(RunFolderError, match="did you mean red/toy/t"):
        read_sweep(runs, "red/toy/s")


def test_a_sweep_without_a_job_is_said_to_have_none(tmp_path: Path) -> None:
    SweepLedger(tmp_path, "red/t").declare([], [])

    with pytest.raises(RunFolderError, match=r"^sweep red/t has no jobs; start it again with python run\.py\.$"):
        read_sweep(tmp_path, "red/t")


def test_a_sweep_of_which_nothing_has_run_is_a_table_of_states(tmp_path: Path) -> None:
    MadeSweep(tmp_path, "red/t").job("red", 0)

    made = table_of(read_sweep(tmp_path, "red/t"), Selection())

    assert words(made, "jobs").loc["red", "seeds"] == "0/1, 1 missing"


def test_a_sweep_without_rows_is_told_apart_by_its_settings(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "sweep-1")
    for tuner, value in (("red", 0.25), ("lora", 0.5)):
        for seed in (0, 1):
            sweep.done("", seed, [number("toy/reward", value)], {"tuner": tuner, "model": "tiny"})

    made = table_of(read_sweep(tmp_path, "sweep-1"), Selection())

    assert [line.label for line in made.rows] == ["tuner=red", "tuner=lora"]
    assert words(made).loc["tuner=lora", "reward - tuner=red"] == "+0.250 (2 pairs: no interval)"


def test_a_long_name_of_the_baseline_is_told_below_the_table_and_not_in_every_title(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "two")
    for method, tuner in (("red", "red"), ("dpo", "lora")):
        sweep.done("", 0, [number("toy/reward", 0.5)], {"method": method, "tuner": tuner, "model": "tiny"})

    (section, *_) = sections_of(table_of(read_sweep(tmp_path, "two"), Selection()), None, tmp_path)

    assert list(section.cells.columns)[-2:] == ["reward", "reward - baseline"]
    assert section.notes[1].startswith('Columns that end in "- baseline": the mean difference from method=red, tuner=red over')


def test_seeds_stand_on_one_line_in_whatever_order_their_words_came(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "two")
    for seed, settings in enumerate(({"a": "1", "b": "2"}, {"b": "2", "a": "1"})):
        sweep.done("", seed, [number("toy/reward", float(seed))], settings)
    sweep.done("", 0, [number("toy/reward", 5.0)], {"b": "3", "a": "4"})

    lines = table_of(read_sweep(tmp_path, "two"), Selection()).rows

    assert [(line.label, len(line.jobs)) for line in lines] == [("a=1, b=2", 2), ("a=4, b=3", 1)]


def test_rows_are_compared_within_the_same_settings(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    for (row, model), value in {("red", "a"): 1.0, ("red", "b"): 2.0, ("lora", "a"): 4.0, ("lora", "b"): 8.0}.items():
        sweep.done(row, 0, [number("toy/reward", value)], {"model": model})

    made = words(table_of(read_sweep(tmp_path, "t"), Selection()))

    assert made.loc[["lora model=a", "lora model=b"], "reward - red"].tolist() == [
        "+3.000 (1 pair: no interval)",
        "+6.000 (1 pair: no interval)",
    ]


def test_the_first_class_stands_beside_a_dial(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    sweep.done("dpo", 0, [number("toy/reward", 1.0)])
    sweep.done(
        "meet", 0, [number("toy/reward", value, control=name) for name, value in (("good", 3.0), ("bad", 0.0), ("none", 2.0))]
    )

    made = table_of(read_sweep(tmp_path, "t"), Selection())

    found = [difference(made, line, "toy/reward") for line in made.rows]
    assert [line.point for line in made.rows] == ["1", "good", "bad", "none"]
    assert [each.value if each else None for each in found] == [None, 2.0, None, None]


def test_a_class_is_compared_with_the_same_class(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    for row, more in (("meet", 0.0), ("coh", 1.0)):
        values = (("good", 3.0), ("bad", 0.5 + more), ("none", 2.0))
        sweep.done(row, 0, [number("toy/reward", value + more, control=name) for name, value in values])

    made = table_of(read_sweep(tmp_path, "t"), Selection())

    found = [difference(made, line, "toy/reward") for line in made.rows]
    assert [line.point for line in made.rows] == ["good", "bad", "none"] * 2
    assert [each.value if each else None for each in found] == [None, None, None, 1.0, 2.0, 1.0]


def test_a_suite_leaves_out_the_points_at_which_it_measures_nothing(tmp_path: Path) -> None:
    numbers = [number("toy/reward", 1.0, control="good"), number("toy/reward", 0.0, control="none")]
    MadeSweep(tmp_path, "t").done("meet", 0, [*numbers, number("classes/gap", 0.5, control="across")])

    made = table_of(read_sweep(tmp_path, "t"), Selection())

    assert words(made)["at"].tolist() == ["good", "none"]
    assert words(made, "classes")["at"].tolist() == ["across"]


def test_csv_has_a_line_per_number_and_leaves_empty_what_is_not_known(table: Table) -> None:
    made = pd.read_csv(io.StringIO(long_csv(table, None))).set_index(["row", "metric"])

    lora, gone = made.loc[("lora", "reward")], made.loc[("gone", "reward")]
    assert len(made) == 4 * 2
    assert lora[["mean", "lowest", "highest", "seeds", "n_per_seed", "pairs"]].tolist() == [2.75, 0, 7, 4, 8, 4]
    assert lora[["paired_items", "resamples"]].isna().all()
    assert gone["mark"] == "failed"
    assert gone[["mean", "difference", "published"]].isna().all()


def test_latex_escapes_what_it_would_read_as_commands(tmp_path: Path) -> None:
    MadeSweep(tmp_path, "t").done("a_b&50%", 0, [number("toy/reward", -0.25), number("toy/words", 1.0)])
    made = table_of(read_sweep(tmp_path, "t"), Selection())

    text = latex("t", sections_of(made, None, Path("nowhere")))

    assert r"a\_b\&50\% & 1 & 1 & 8 & $-$0.250" in text
    assert text.count(r"\toprule") == 1


def test_markdown_keeps_a_bar_inside_its_cell(tmp_path: Path) -> None:
    MadeSweep(tmp_path, "t").done("a|b", 0, [number("toy/reward", 0.5)])

    text = markdown("t", sections_of(table_of(read_sweep(tmp_path, "t"), Selection()), None, Path("nowhere")))

    assert r"| a\|b | 1  | 1     | 8 | 0.500  |" in text


@pytest.mark.parametrize(("name", "begins"), [("t.md", "# red/toy/t"), ("t.tex", "% red/toy/t"), ("t.csv", "table,row,")])
def test_the_suffix_of_the_file_decides_its_form(runs: Path, tmp_path: Path, name: str, begins: str) -> None:
    status = main(["table", "red/toy/t", "--runs", str(runs), "--to", str(tmp_path / name)])

    assert status == 0
    assert (tmp_path / name).read_text().startswith(begins)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--to", "t.docx"], "--to t.docx does not say its form; let it end in .md, .tex, .csv"),
        (["--strength", "one"], "--strength one: give numbers, or all"),
        (["--means"], "--means does not fit: there is no folder red/toy/t, and a sweep does not take it; give a folder"),
    ],
)
def test_an_option_that_does_not_fit_is_one_sentence(
    runs: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", "red/toy/t", "--runs", str(runs), *options]) == 1
    assert sentence in capsys.readouterr().err


def test_a_folder_has_no_options_of_a_sweep(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(runs), "--baseline", "red"]) == 1
    assert "--baseline does not fit" in capsys.readouterr().err


def test_a_cell_says_how_many_of_its_seeds_another_version_has_made(tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path, "t")
    for seed, code in ((0, "older"), (1, "new"), (2, "new")):
        run = sweep.done("red", seed, [number("toy/reward", 0.5)])
        run.write("env.json", {**ENVIRONMENT, "code": code})
        run.write("status.json", {"state": "done", "time": f"2026-01-0{seed + 1}T00:00:00+00:00"})

    (row,) = table_of(read_sweep(tmp_path, "t"), Selection()).rows

    assert row.mark("toy/reward") == "1 by another version"


@pytest.mark.parametrize("name", ["report.json", "status.json", "config.json", "env.json"])
def test_a_damaged_file_of_one_run_leaves_the_numbers_of_the_others(name: str, tmp_path: Path) -> None:
    sweep = MadeSweep(tmp_path / "runs", "t")
    for seed in (0, 1):
        sweep.done("red", seed, [number("toy/reward", 0.5 + seed)])
    (tmp_path / "runs" / "red" / "seed-0" / name).write_text("{")

    for words in (["table", "t", "--runs", str(tmp_path / "runs")], ["status", "--runs", str(tmp_path / "runs")]):
        assert main(words) == 0
    assert main(["report", "t", "--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "page.html")]) == 0
    assert main(["table", str(tmp_path / "runs")]) == 0
