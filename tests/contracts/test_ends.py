"""How a run ends: a trained one with its report, whatever the model writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import alignlab
from alignlab.errors import MeasureError
from alignlab.models.policy import Policy
from run import run
from tests.contracts.test_methods import composed

SAMPLED = ("evaluation.suites=[toy,fluency]", "evaluation.prompts=4")


def write(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Makes every policy write these texts, in turn."""
    monkeypatch.setattr(Policy, "respond", lambda _, prompts, **__: [texts[n % len(texts)] for n in range(len(prompts))])


def test_a_model_that_writes_special_tokens_is_measured_and_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(monkeypatch, "Tom was</s> happy.", "<bos>", "Tom was happy.", "")

    run(composed(tmp_path, "sft", *SAMPLED))

    rows = json.loads((tmp_path / "run" / "report.json").read_text())["results"]
    (perplexity,) = [row for row in rows if row["metric"] == "perplexity" and row["strength"] == 1]
    assert (perplexity["n"], {row["n"] for row in rows if row["suite"] == "toy"}) == (1, {4})
    assert "2 of 4 texts left out: a special token is written out in it" in perplexity["note"]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_a_run_that_could_not_measure_what_was_asked_for_is_finished_and_says_so_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(monkeypatch, "")

    for _ in range(2):
        with pytest.raises(MeasureError, match=r"^fluency/perplexity could not be measured at dial 0 \(4 of 4 texts left out"):
            run(composed(tmp_path, "sft", *SAMPLED))

    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    alignlab.load(tmp_path / "run", device="cpu")
