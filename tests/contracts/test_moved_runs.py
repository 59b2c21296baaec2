"""A finished run is whole in its folder: moved elsewhere it loads as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import alignlab
from alignlab.config import parse
from run import run
from tests.bits import assert_same_bits
from tests.contracts.test_methods import composed

WORLD = ("data.pairs=12", "data.test_pairs=4")
SHORT = ("epochs=null", "steps=1", "batch=4", "warmup_fraction=0")
TRAINED = {"rahf": ("instruct", "dispreferred", "preferred", "fit"), "meet": ("controls", "joint")}


@pytest.mark.parametrize("method", ["rahf", "meet"])
def test_a_run_that_has_moved_loads_and_holds_no_path_of_where_it_was(method: str, tmp_path: Path) -> None:
    short = [f"method.{stage}.{word}" for stage in TRAINED[method] for word in SHORT]
    run(composed(tmp_path / "here", method, "evaluation=off", *short, data=WORLD))
    (finished,) = [path.parent for path in (tmp_path / "here").glob("**/report.json")]
    before = alignlab.load(finished, device="cpu").model.state_dict()

    shutil.move(tmp_path / "here", tmp_path / "there")

    moved = tmp_path / "there" / finished.relative_to(tmp_path / "here")
    after = alignlab.load(moved, device="cpu").model.state_dict()
    written = [file for file in (moved / "stages").rglob("*") if file.suffix in (".json", ".md")]
    assert_same_bits(after, before)
    assert written
    assert not [file for file in written if str(tmp_path) in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("method", ["sft", "dpo", "red", "clm"])
def test_lora_in_the_lower_blocks_goes_with_a_method_that_aligns_no_layers(method: str, tmp_path: Path) -> None:
    config = parse(composed(tmp_path, method, "tuner=lora_lower"))

    assert (config.tuner.below.numbers, config.tuner.below.depth, config.tuner.beyond) == (None, [0.31, 0.56], 0)  # type: ignore[attr-defined]
