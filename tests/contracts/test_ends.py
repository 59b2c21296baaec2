"""How a run ends: a trained one with its report, whatever the model writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import alignlab
from alignlab.errors import DivergedError, MeasureError
from alignlab.models.policy import Policy
from run import run
from tests.contracts.test_methods import composed, history

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


@pytest.mark.parametrize("reference", ["base", "start"])
@pytest.mark.parametrize("cached", [True, False])
def test_in_bfloat16_the_first_preference_loss_is_ln_2_whether_references_are_cached_or_not(
    reference: str, cached: bool, tmp_path: Path
) -> None:
    words = ("tuner=lora", "+trainer.extra.bf16=true", f"method.cache_reference={cached}", f"method.reference={reference}")
    words = (*words, "method.likelihood=0.0", "trainer.micro_batch=2", "trainer.log_every_steps=1", "evaluation=off")

    run(composed(tmp_path, "dpo", *words))

    losses = [line["prefer/loss"] for line in history(tmp_path) if "prefer/loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_divergence_names_the_rate_its_key_the_step_and_gradients_that_are_not_clipped(tmp_path: Path) -> None:
    words = ("tuner=full", "tuner.likelihood_rate=9.0", "method.fit.max_grad_norm=0", "method.fit.warmup_fraction=0")
    more = ("model=tiny_gpt2", "method.fit.schedule=constant", "evaluation=off")

    with pytest.raises(DivergedError) as info:
        run(composed(tmp_path, "sft", *words, *more, steps=200))

    assert "the learning rate was 9 (method.fit.learning_rate=9); lower it, set method.fit.max_grad_norm=1.0" in str(info.value)
