"""RED's tables: the published rows, and the paper's numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from shutil import copytree
from typing import Any

import pandas as pd
import pytest

from alignlab.__main__ import main
from alignlab.commands.params import counted, rounded
from alignlab.commands.params import rows_of as rows_with_backbones
from alignlab.config import GROUPS
from alignlab.evaluation import METRICS
from alignlab.models.backbone import skeleton
from alignlab.models.config import EMBEDDED
from alignlab.tables.render import published_for
from run import run
from tests.experiments.sweeps import EXPERIMENTS, cells, composed, run_of, tables, tried

TABLES = tables("red")
PUBLISHED = [f"table{number}" for number in range(1, 9)] + ["open_llm", "mt_bench", "params"]
NOT_BUILT = {3: {"bitfit"}}
"""Published rows that do not run here, by the number of the table: biases of a T5, which has none."""
NOT_AT_THE_TOY_SCALE = {
    1: {"adapter", "adapter-ffn"},
    2: {"adapter", "adapter-ffn", "prefix"},
    3: {"adapter", "adapterdrop", "bitfit"},
    5: {"adapter-rank1", "adapter-ffn-rank1"},
}
AT_PAPER_SCALE = (1, 2, 3, 5, 6, 7, 8)
RATES = ("method.fit.learning_rate=1.0e-3", "method.fit.warmup_fraction=0.0", "method.fit.weight_decay=0.0")
"""What a table takes from its own backbones."""
BACKBONE = re.compile(r"-(roberta|gpt2)-(base|medium|large)$")
ON_GPT2 = "model=tiny_gpt2"


def rows_of(table: str) -> set[str]:
    """The rows that a table runs."""
    return {cell[0].partition("=")[2] for cell in cells(table)}


def published_rows(table: str) -> set[str]:
    """The rows that the paper prints, without their backbones."""
    return {BACKBONE.sub("", row) for row in pd.read_csv(EXPERIMENTS / "red" / table / "published.csv").row}


@pytest.mark.parametrize("table", PUBLISHED)
def test_published_rows_are_named_once(table: str) -> None:
    published = pd.read_csv(EXPERIMENTS / "red" / table / "published.csv")

    assert published.columns[0] == "row"
    assert published.row.is_unique


@pytest.mark.parametrize("number", range(1, 9))
def test_a_toy_table_has_every_published_row_but_those_that_were_not_run(number: int) -> None:
    ours = rows_of(f"red/toy/table{number}")

    assert ours == published_rows(f"table{number}") - NOT_AT_THE_TOY_SCALE.get(number, set())


@pytest.mark.parametrize("number", AT_PAPER_SCALE)
def test_a_table_at_the_papers_scale_has_every_published_row_that_can_run(number: int) -> None:
    ours = rows_of(f"red/table{number}")

    assert ours == published_rows(f"table{number}") - NOT_BUILT.get(number, set())


@pytest.mark.parametrize("number", AT_PAPER_SCALE)
def test_every_published_column_is_one_of_our_metrics_or_none(number: int) -> None:
    table = published_for(f"red/table{number}", EXPERIMENTS)
    assert table is not None

    metrics = {name: meant.metric for name, meant in table.stands_for.items()}

    assert tuple(metrics) == table.columns
    assert {metric.partition("/")[2] for metric in metrics.values() if metric} <= set(
        METRICS["classification"] + METRICS["nlg"]
    )
    assert [name for name, metric in metrics.items() if not metric] == [
        name for name in table.columns if name in ("params_m", "avg") or name.endswith("_sd")
    ]


COUNTS = {
    1: {"red": (18_432, 49_152), "lora": (294_912, 786_432), "ia3": (55_296, 147_456), "ft": (124_647_939, 355_362_819)},
    2: {"red": (49_152, 92_160), "ft-top2": (25_192_448, 39_354_880), "adapter": (934_272, 1_751_616)},
    3: {"red": (36_864,), "adapter": (1_853_568,), "adapterdrop": (1_081_248,), "prompt-tuning": (76_800,)},
    4: {"red": (262_144,), "lora": (8_388_608,)},
    5: {"adapter-rank1": (245_808,), "adapter-ffn-rank1": (73_752,), "lora-rank1": (98_304,)},
    7: {"red-plus": (92_160, 245_760)},
    8: {"red-plus": (245_760, 460_800)},
}
"""Two vectors of width d per edited output. LoRA: 2 r d for each of q and v (c_attn: r (d + 3 d)). An adapter of inner width b:
2 d b + b + d, and 2 d for each of two norms of a block (T5: d). IA3: 2 d + 4 d a block. RoBERTa's ft has MNLI's head.
Prompt tuning: 100 vectors of width d."""


@pytest.mark.parametrize("number", COUNTS)
def test_rows_train_as_many_parameters_as_the_paper_prints(number: int) -> None:
    found: dict[str, list[int]] = {}
    for row, _, config in rows_with_backbones(f"red/table{number}"):
        if row in COUNTS[number]:
            found.setdefault(row, []).append(counted(config)[0])

    assert {row: tuple(counts) for row, counts in found.items()} == COUNTS[number]


def test_params_prints_the_papers_column_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", "red/table7"]) == 0

    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "red-plus" in line
    ]
    assert [line[:5] for line in lines] == [
        ["red-plus", "roberta_base", "0.09", "92,160", "yes"],
        ["red-plus", "roberta_large", "0.25", "245,760", "yes"],
    ]


@pytest.mark.parametrize(
    ("count", "printed", "same"), [(18_432, "0.02", True), (222_903_552, "220", False), (350_400, "0.4", True)]
)
def test_a_count_is_rounded_as_the_paper_prints_it(count: int, printed: str, same: bool) -> None:
    assert (rounded(count, printed) == printed) == same


@pytest.mark.parametrize(("name", "says"), [("red/table9", "there is no experiment"), ("red/glue", "sweeps nothing")])
def test_params_of_what_is_no_table_is_refused(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", name]) == 1

    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "task", "expected"),
    [  # the paper's tables 13 and 15: rate, epochs, warm-up, decay
        ("roberta_base", "rte", (8e-3, 40, 0.06, 0.0)),
        ("roberta_base", "mnli", (1e-3, 20, 0.06, 0.0)),
        ("roberta_large", "rte", (5e-3, 20, 0.01, 1e-4)),
        ("roberta_large", "mrpc", (2e-3, 20, 0.0, 0.0)),
        ("roberta_large", "sst2", (1e-3, 10, 0.06, 0.0)),
    ],
)
def test_roberta_trains_with_the_numbers_of_its_task(model: str, task: str, expected: tuple[float, ...]) -> None:
    config = run_of("red/table1", "+experiment/red/table1=red", f"model={model}", f"data.task={task}", "seed=42")
    fit = config.method.fit

    assert (fit.learning_rate, fit.epochs, fit.warmup_fraction, fit.weight_decay) == expected
    assert (fit.batch, fit.schedule, fit.max_grad_norm, fit.adam_epsilon) == (32, "linear", 0.0, 1e-6)
    assert (config.data.split_seed, config.data.max_tokens, config.suites) == (42, 256, ("classification",))


def test_gpt2_answers_once_per_meaning_with_ten_beams() -> None:
    config = run_of("red/table2", "+experiment/red/table2=red", "model=gpt2_medium", "seed=42")

    assert (config.evaluation.prompts, config.evaluation.beams, config.evaluation.no_repeat_ngram_size) == (630, 10, 4)
    assert (config.method.fit.learning_rate, config.method.fit.weight_decay, config.suites) == (6e-2, 1e-4, ("nlg",))


def glue_in(folder: Path) -> Path:
    """A task's files with a few rows, of which the embedded tokenizer knows the words."""
    for name, count in (("train", 16), ("validation", 12)):
        rows = [{"sentence1": "Tom was happy.", "sentence2": f"Tom had {n} kites.", "label": n % 2} for n in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("table", "row", "model", "metric"),
    [
        ("table1", "adapter", "tiny_roberta", "matthews"),
        ("table1", "red", "tiny_roberta", "f1"),
        ("table3", "red", "tiny_t5", "accuracy"),
    ],
)
def test_a_row_on_glue_runs_on_an_embedded_model(table: str, row: str, model: str, metric: str, tmp_path: Path) -> None:
    words = (f"model={model}", "data.task=rte", f"data.path={glue_in(tmp_path)}", f"paths.runs={tmp_path}/runs", "tracking=off")
    small = ("method.fit.epochs=null", "method.fit.steps=2", "method.fit.batch=4", "trainer.device=cpu", "trainer.threads=1")
    raw = composed(f"red/{table}", f"+experiment/red/{table}={row}", *words, *small, *RATES)

    run(raw)

    measured = {line["metric"]: line for line in report_below(tmp_path)["results"]}
    assert measured[metric]["n"] == 6


@pytest.mark.parametrize(
    ("row", "metric"),
    [
        (("table1", "red", "tiny_roberta"), "classification/accuracy"),
        (("table3", "prompt-tuning", "tiny_t5"), "toy/reward"),
        (("table2", "red", "tiny_gpt2"), "nlg/bleu"),
    ],
)
def test_a_row_of_a_toy_table_runs(row: tuple[str, str, str], metric: str, tmp_path: Path) -> None:
    (table, name, model), (suite, _, quantity) = row, metric.partition("/")
    if suite == "nlg":
        pytest.importorskip("sacrebleu", reason="pip install 'alignlab[nlg]'")
    small = (
        "method.fit.steps=2",
        "method.fit.batch=4",
        "evaluation.pairs=8",
        "evaluation.prompts=4",
        "control.strengths=[1.0]",
    )
    words = (*small, "evaluation.max_new_tokens=4", f"paths.runs={tmp_path}/runs", "tracking=off", "trainer.device=cpu")

    run(composed(f"red/toy/{table}", f"+experiment/red/{table}={name}", f"model={model}", "seed=0", *words))

    measured = [f"{line['suite']}/{line['metric']}" for line in report_below(tmp_path)["results"]]
    assert f"{suite}/{quantity}" in measured


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, ...]:
    """The folders that `red/small` asks for: an embedded encoder, and four texts of each data set."""
    copytree(EMBEDDED / "tiny_roberta", tmp_path / "models" / "minilm-l6")
    texts = {
        "sentence-polarity/all": "sentence,label",
        "banking77/train": "text,category",
        "qnli/dev": "premise,hypothesis,label",
    }
    for file, columns in texts.items():
        path = tmp_path / "data" / f"{file}.csv"
        path.parent.mkdir(parents=True)
        rows = [",".join([f"Tom had {number} kites."] * columns.count(",")) + f",{number % 2}" for number in range(20)]
        path.write_text("\n".join([columns, *rows]) + "\n")
    return f"paths.models={tmp_path}/models", f"paths.data={tmp_path}/data"


def test_every_row_on_real_text_is_a_run_with_a_rate_of_its_own(given: tuple[str, ...]) -> None:
    every = [cell for cell in cells("red/small") if cell[-1] == "seed=0"]

    configs = [run_of("red/small", *cell, *given) for cell in every]

    assert len({config.fingerprint for config in configs}) == len(configs) == 12 * 3
    assert {config.tuner.name for config in configs} == {"red", "loreft", "lora", "bitfit", "ia3", "prefix", "prompt", "full"}
    assert {(config.suites, config.method.fit.steps, config.trainer.validation.rows) for config in configs} == {
        (("classification",), 60, 200)
    }


def test_a_row_on_real_text_runs_on_an_embedded_encoder(given: tuple[str, ...], tmp_path: Path) -> None:
    small = ("method.fit.steps=2", "method.fit.batch=4", "trainer.validation.every_steps=2", "trainer.validation.rows=2")
    cell = ("+experiment/red/small/rows=prompt", "+experiment/red/small/tasks=qnli", "seed=0")
    words = ("trainer.device=cpu", "tracking=off", f"paths.runs={tmp_path}/runs")

    run(composed("red/small", *cell, *given, *small, *words))

    measured = {line["metric"]: line for line in report_below(tmp_path)["results"]}
    assert measured["accuracy"]["n"] == 4


def test_a_row_on_e2e_runs_on_an_embedded_model(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu", reason="pip install 'alignlab[nlg]'")
    for name in ("trainset", "devset", "testset_w_refs"):
        (tmp_path / f"{name}.csv").write_text("mr,ref\n" + "name[Tom],Tom was happy.\nname[Anna],Anna was sad.\n" * 6)
    words = ("model=tiny_gpt2", 'model.template.format="{prompt}\\n"', f"data.path={tmp_path}", "data.too_long=cut_response")
    small = ("method.fit.epochs=null", "method.fit.steps=2", "method.fit.batch=4", "trainer.device=cpu", "trainer.threads=1")
    more = (f"paths.runs={tmp_path}/runs", "tracking=off", "evaluation.max_new_tokens=8", "evaluation.beams=2")
    raw = composed("red/table2", "+experiment/red/table2=red", *words, *small, *more, *RATES)

    run(raw)

    measured = {line["metric"]: line for line in report_below(tmp_path)["results"]}
    assert {"bleu", "nist"} <= set(measured)
    assert measured["bleu"]["n"] == 2


def report_below(folder: Path) -> dict[str, Any]:
    """The report of the only run."""
    (path,) = folder.glob("runs/**/report.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_table_4_has_every_published_row_and_what_the_released_checkpoint_is() -> None:
    assert rows_of("red/table4") == published_rows("table4") | {"red-without-scale"}


@pytest.mark.parametrize(
    ("row", "rate", "epochs"),
    [("ft", 2e-5, 3), ("lora", 3e-4, 3), ("red", 1e-3, 10), ("red-without-scale", 1e-3, 10)],
)
def test_llama_trains_with_the_numbers_of_table_10(row: str, rate: float, epochs: int) -> None:
    config = run_of("red/table4", f"+experiment/red/table4={row}")
    fit = config.method.fit

    assert (fit.learning_rate, fit.epochs, fit.batch) == (rate, epochs, 128)
    assert (fit.schedule, fit.warmup_fraction, fit.weight_decay, fit.loss_on) == ("cosine", 0.1, 0.0, "all")
    assert (fit.max_grad_norm, fit.adam_epsilon, config.data.max_tokens) == (0.0, 1e-6, 768)
    assert (config.sizing.tuner, config.sizing.method) == (None, None)


def test_lora_on_llama_has_rank_16_on_queries_and_values() -> None:
    tuner = vars(run_of("red/table4", "+experiment/red/table4=lora").tuner)

    assert {key: tuner[key] for key in ("rank", "alpha", "dropout", "targets")} == {
        "rank": 16,
        "alpha": 16.0,
        "dropout": 0.1,
        "targets": None,
    }


@pytest.mark.parametrize("table", [table for table in TABLES if table.startswith("red/toy/")])
def test_rows_of_a_toy_table_differ_in_the_tuner_only(table: str) -> None:
    configs = [run_of(table, *cell) for cell in cells(table) if cell[-1] == "seed=0"]

    shared = {str((config.data, config.control, config.evaluation, config.trainer)) for config in configs}
    fits = {str({**vars(config.method.fit), "learning_rate": None, "weight_decay": None}) for config in configs}

    assert len(shared) == len(fits) == 1


def test_no_table_puts_bitfit_on_a_backbone_without_biases() -> None:
    models = {run_of(table, *cell).model.name for table in TABLES for cell in tried(table) if cell[0].endswith("=bitfit")}

    assert models == {"tiny_roberta", "roberta_base", "roberta_large"}


@pytest.mark.parametrize(
    ("rows", "row", "learned"),
    [  # 4 blocks of width d = 96: RED's 2 d a block is 768; by params.csv LoRA's rank 8 is 16 times that, rank 1 twice
        ("red/table1", "red", 768),
        ("red/table1", "lora", 12_288),
        ("red/table1", "ia3", 2_688),  # 3 d of c_attn and 4 d of the inner activation a block
        ("red/table1", "bitfit", 4_320),  # a block 3 d + d + 4 d + d and 2 d of its norms, and d of the last norm
        ("red/toy/table5", "lora-rank1", 1_536),
        ("red/table6", "red-without-scale", 384),
        ("red/table6", "red-without-bias", 384),
        ("red/table8", "red-plus", 3_840),  # five outputs a block
    ],
)
def test_rows_have_the_parameters_that_their_method_says(rows: str, row: str, learned: int) -> None:
    config = run_of(f"red/toy/{rows.split('/')[-1]}", f"+experiment/{rows}={row}", ON_GPT2, "seed=0")

    tuner = GROUPS["tuner"][config.tuner.name].build(config.tuner, skeleton(config.model), None)

    assert sum(parameter.numel() for parameter in tuner.parameters()) == learned
