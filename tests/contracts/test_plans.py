"""What a sweep's plan counts without reading anything is what the runs do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from alignlab import planning
from alignlab.config import parse
from alignlab.errors import ConfigError, DataError
from alignlab.planning import show
from alignlab.sweeps.jobs import planned_stages
from tests.contracts.test_methods import STAGE, composed

EPOCHS = ("epochs=2.0", "steps=null", "batch=8")
"""CoH rounds up in each half of its course, so that an odd number of steps would be one more than planned."""
HALVES = "data.halves={seed: 1, test: null, max_prompt: null}"
CASES = {
    **{method: (method,) for method in STAGE},
    "dpo, on a half": ("dpo", HALVES, "data.part=rm"),
    "dpo behind sft": ("dpo", "method.sft_first=true"),
    "rahf, both responses": ("rahf", "method.responses=both"),
    "rahf, in halves": ("rahf", HALVES),
    "rahf, two models": ("rahf", "method.variant=dual"),
    "rahf, two models, in halves": ("rahf", "method.variant=dual", HALVES),
    "hir": ("rahf", "method.variant=hir", "tuner=control", "control=prefixes"),
    "some of the records": ("red", "data.limit=10"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_steps_of_epochs_are_counted_before_the_data_is_read(case: str, tmp_path: Path) -> None:
    method, *words = CASES[case]
    stages = parse(composed(tmp_path, method, *words)).method.fits()
    epochs = [f"method.{stage}.{word}" for stage in stages for word in EPOCHS]

    config = parse(composed(tmp_path, method, *words, *epochs))

    plan = planning.make_plan(config)
    made = {stage.name: work.steps for stage, work in zip(plan.method.stages, plan.works, strict=True) if stage.trains}
    assert {stage.name: stage.steps for stage in planned_stages(config) or ()} == made


def decoding(tmp_path: Path, method: str, *words: str) -> tuple[int, int, int] | None:
    """Texts at a time, rows of each and tokens of a row, as a plan has them."""
    need = planning.make_plan(parse(composed(tmp_path, method, *words))).decoding
    return (need[0].texts, need[0].rows, need[0].tokens) if need else None


def test_a_plan_says_what_decoding_takes(tmp_path: Path) -> None:
    words = ("evaluation.suites=[toy]", "evaluation.prompts=6", "evaluation.max_new_tokens=30")
    plan = planning.make_plan(parse(composed(tmp_path, "red", *words)))
    console = Console(record=True, width=240)

    show(plan, (), console)

    longest = max(len(ids) for ids in planning.load_codec(plan.config.model).prompts(plan.source.prompts()[:6]))
    assert f"6 texts at a time, 1 x {longest + 30} tokens each: weights 0.00194 + caches " in console.export_text()


def test_texts_have_a_row_for_each_term_and_beam_and_fewer_of_them_fit_a_smaller_budget(tmp_path: Path) -> None:
    words = ("evaluation.suites=[toy]", "evaluation.prompts=6", "control.strengths=[0.0,0.5]")
    greedy = ("evaluation.temperature=0.0", "evaluation.beams=3", "control.strengths=[0.0,1.0]")

    assert (decoding(tmp_path, "clm", *words) or ())[:2] == (6, 2)
    assert (decoding(tmp_path, "clm", *words, *greedy) or ())[:2] == (6, 3)
    assert (decoding(tmp_path, "clm", *words, "trainer.pass_gib=1e-4") or ())[:2] == (1, 2)


def test_where_no_text_is_sampled_no_decoding_is_planned(tmp_path: Path) -> None:
    assert decoding(tmp_path, "clm", "evaluation.suites=[preference]") is None


def test_beams_are_refused_where_the_evaluation_mixes_passes(tmp_path: Path) -> None:
    words = ("evaluation.temperature=0.0", "evaluation.beams=3", "control.strengths=[0.0,0.5,1.0,2.0]")

    with pytest.raises(
        ConfigError, match=r"evaluation.beams=3 follow one pass, and at strength 0\.5, strength 2 passes are mixed"
    ):
        decoding(tmp_path, "clm", *words)


def test_a_token_without_a_row_in_the_embedding_is_named_with_its_row(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(Path(planning.__file__).parent / "models" / "tiny" / "tiny", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"<tool{number}>" for number in range(600)])  # more than the rows that pad the embedding
    tokenizer.save_pretrained(model)
    rows = [{"prompt": f"Tell {mark}", "chosen": "One.", "rejected": "Two."} for mark in ("me.", "<tool599>")]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("model=local", f"model.path={model}", "evaluation=off")

    with pytest.raises(
        DataError, match=r"^train\.jsonl:2: holds the token '<tool599>' \(id \d+\), but the model's embedding has"
    ):
        planning.make_plan(parse(composed(tmp_path, "dpo", *words, data=("data=jsonl", f"data.path={tmp_path}"))))


def test_a_plan_shows_one_row_as_it_will_be_fed(tmp_path: Path) -> None:
    plan = planning.make_plan(parse(composed(tmp_path, "dpo", "evaluation.suites=[]")))
    console = Console(record=True, width=400)

    show(plan, (), console)

    first = plan.source.split("train").records[0]
    response = first.responses[0].text
    (line,) = [line for line in console.export_text().splitlines() if line.startswith("row as fed")]
    assert line.startswith(f"row as fed    {first.row}: <bos>{first.prompt}\\n>>>{response[:120]}")
    assert line.rstrip().endswith(f"{response[-100:]}</s><<<")
