"""RED's tables: the published rows, and the paper's numbers."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from alignlab.config import GROUPS
from alignlab.models.backbone import skeleton
from tests.experiments.sweeps import EXPERIMENTS, cells, run_of, tables

TABLES = tables("red")
PUBLISHED = [f"table{number}" for number in range(1, 9)] + ["open_llm", "mt_bench", "params"]
NOT_BUILT = {
    1: {"adapter", "adapter-ffn"},
    2: {"adapter", "adapter-ffn", "prefix"},
    3: {"adapter", "adapterdrop", "prompt-tuning"},
    5: {"adapter-rank1", "adapter-ffn-rank1"},
}
"""Published rows without a tuner here, by the number of the table."""
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
def test_a_toy_table_has_every_published_row_but_those_without_a_tuner(number: int) -> None:
    ours = rows_of(f"red/toy/table{number}")

    assert ours == published_rows(f"table{number}") - NOT_BUILT.get(number, set())


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
    models = {run_of(table, *cell).model.name for table in TABLES for cell in cells(table) if cell[0].endswith("=bitfit")}

    assert models == {"tiny_gpt2"}


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
