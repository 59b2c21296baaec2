"""What holds for every method, run through the same door as `python run.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file

import alignlab
from alignlab.config import parse
from alignlab.errors import ConfigError, DataError, DivergedError, RunFolderError
from alignlab.methods import METHODS
from alignlab.models.sampling import Sampling
from alignlab.training.trainer import latest
from run import run
from tests.bits import assert_same_bits

CONF = Path(__file__).parents[2] / "conf"
WORLD = ("data.pairs=24", "data.test_pairs=8", "data.corpus=24")
SMALL = (
    "evaluation.prompts=4",
    "evaluation.pairs=8",
    "evaluation.max_new_tokens=8",
    "control.strengths=[0.0,1.0]",
    "tracking=off",
    "trainer.device=cpu",
)
APART = ("evaluate", "tpt")
"""Methods that are not here: one without a stage, so with nothing to resume or repeat; one that needs an encoder
(tests/unit/methods/test_tpt.py)."""
TRIED = [method for method in METHODS if method not in APART]


@cache
def stages(method: str) -> list[str]:
    """The stages that train, in order, as the method's own config has them."""
    model = "tiny_roberta" if method == "reward" else "tiny"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return list(parse(compose("run", [f"method={method}", f"model={model}"])).method.fits())


ANSWERING = [(method, model) for method in TRIED if method != "reward" for model in ("tiny", "tiny_gpt2")]
WITH_REWARD = [*ANSWERING, ("reward", "tiny_roberta")]
every_method = pytest.mark.parametrize(("method", "model"), WITH_REWARD)
every_answering_method = pytest.mark.parametrize(("method", "model"), ANSWERING)
"""A reward model writes no answers; see test_reward_runs.py."""


def with_gpt2_slow(pairs: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """Each method on the first model, and on GPT-2 with the slow tests: of what does not depend on the backbone."""
    slow = {model: [pytest.mark.slow] if model == "tiny_gpt2" else [] for _, model in pairs}
    return pytest.mark.parametrize(("method", "model"), [pytest.param(*pair, marks=slow[pair[1]]) for pair in pairs])


def composed(
    folder: Path, method: str, *overrides: str, data: tuple[str, ...] = WORLD, steps: int = 2, batch: int = 8
) -> DictConfig:
    """The config of a small run of a method in a folder."""
    words = [f"method={method}", *SMALL, *data, f"paths.runs={folder}", f"folder={folder}/run"]
    for stage in stages(method):
        words += [f"method.{stage}.epochs=null", f"method.{stage}.steps={steps}", f"method.{stage}.batch={batch}"]
    words += overrides
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", words)


def learned(folder: Path, method: str) -> dict[str, torch.Tensor]:
    """The tensors that a run left behind."""
    return tensors(folder / "run" / "stages" / stages(method)[-1] / "result")


def learned_at(stage: Path) -> dict[str, torch.Tensor]:
    """The tensors of a stage's latest complete checkpoint."""
    checkpoint = latest(stage)
    assert checkpoint is not None
    return tensors(checkpoint)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor below a folder; a stage that moves two parts has a folder for each."""
    files = sorted(folder.glob("**/*.safetensors"))
    return {f"{file.parent.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def history(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


Finished = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Small runs by method and overrides, each done when it is first asked for; tests read them and write nothing there."""

    @cache
    def of(method: str, *words: str) -> Path:
        folder = tmp_path_factory.mktemp(method)
        run(composed(folder, method, *words))
        return folder

    return of


@every_method
def test_a_run_leaves_a_complete_folder(method: str, model: str, finished: Finished) -> None:
    folder = finished(method, f"model={model}") / "run"

    written = {file.name for file in folder.iterdir()}
    status = json.loads((folder / "status.json").read_text())
    assert written >= {"config.yaml", "env.json", "metrics.jsonl", "status.json", "report.json", "curves.png", "dial.png"}
    assert status["state"] == "done"


@every_answering_method
def test_a_report_has_rows_with_n_and_an_interval(method: str, model: str, finished: Finished) -> None:
    report = json.loads((finished(method, f"model={model}") / "run" / "report.json").read_text())

    assert report["headline"]["metric"] == "toy/reward"
    assert set(report["results"][0]) == {"strength", "control", "suite", "metric", "value", "n", "low", "high"}
    measured = [row for row in report["results"] if row["low"] is not None]
    assert measured
    assert all(row["low"] <= row["value"] + 1e-9 and row["value"] <= row["high"] + 1e-9 for row in measured)
    assert [row["metric"] for row in report["results"] if row["low"] is None and row["high"] is not None] == []


@with_gpt2_slow(WITH_REWARD)
def test_accumulation_does_not_change_the_result(method: str, model: str, tmp_path: Path) -> None:
    # Attention does not change with its key biases: their gradient is rounding, which Adam would blow up to full steps.
    words = (f"model={model}", f"method.{stages(method)[-1]}.adam_epsilon=1e-4", "evaluation=off")
    for micro in (8, 2):
        run(composed(tmp_path / str(micro), method, *words, f"trainer.micro_batch={micro}"))

    whole, quarters = (learned(tmp_path / str(micro), method) for micro in (8, 2))
    assert whole
    for name, tensor in whole.items():
        torch.testing.assert_close(quarters[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("packing", ["pairs", "off"])
@pytest.mark.parametrize("tuner", ["full", "lora", "red", "clm"])
def test_gradient_checkpointing_does_not_change_a_bit(tuner: str, packing: str, finished: Finished) -> None:
    words = (f"tuner={tuner}", "evaluation=off", *([] if packing == "pairs" else [f"trainer.packing={packing}"]))

    kept, again = finished("dpo", *words), finished("dpo", *words, "trainer.gradient_checkpointing=true")

    assert_same_bits(learned(kept, "dpo"), learned(again, "dpo"))


@with_gpt2_slow(WITH_REWARD)
def test_the_same_seed_gives_the_same_bits(method: str, model: str, finished: Finished, tmp_path: Path) -> None:
    before = finished(method, f"model={model}")

    run(composed(tmp_path, method, f"model={model}"))

    assert_same_bits(learned(before, method), learned(tmp_path, method))
    reports = [json.loads((folder / "run" / "report.json").read_text())["results"] for folder in (before, tmp_path)]
    assert reports[0] == reports[1]


@with_gpt2_slow(WITH_REWARD)
def test_resuming_equals_never_having_stopped(
    method: str, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (f"model={model}", "trainer.checkpoint_every_steps=2", "trainer.keep_optimizer=true", "evaluation=off")
    run(composed(tmp_path, method, *words, steps=4))
    whole = learned(tmp_path, method)
    stage = tmp_path / "run" / "stages" / stages(method)[-1]
    (stage / "done.json").unlink()
    shutil.rmtree(stage / "result")
    (stage / "checkpoint-4" / "complete").unlink()
    (tmp_path / "run" / "status.json").unlink()
    shutil.rmtree(tmp_path / ".store")  # else the finished stage would be put in place

    with caplog.at_level("INFO", logger="alignlab"):
        run(composed(tmp_path, method, *words, steps=4))

    assert f"{stages(method)[-1]}: resumed from checkpoint-2" in caplog.text
    assert_same_bits(whole, learned(tmp_path, method))


@with_gpt2_slow(ANSWERING)
def test_a_loaded_run_answers_like_the_run(method: str, model: str, finished: Finished) -> None:
    folder = finished(method, f"model={model}") / "run"
    sampling = Sampling(max_new_tokens=8, temperature=1.0, top_p=1.0)
    prompts = ["Tell a story about Tom and a kite."]

    policies = [alignlab.load(folder) for _ in range(2)]
    answers = [policy.respond(prompts, strength=1.0, sampling=sampling, seed=0) for policy in policies]

    stage = folder / "stages" / stages(method)[-1] / "result"
    own = stage / "control" if (stage / "control").is_dir() else stage
    held = policies[0].tuner.parameters()
    assert sum(parameter.numel() for parameter in held) == sum(tensor.numel() for tensor in tensors(own).values())
    assert answers[0] == answers[1]


def test_the_first_loss_of_dpo_is_ln_2_and_the_line_of_its_step_shows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="alignlab"):
        run(composed(tmp_path, "dpo", "method.likelihood=0", "evaluation=off"))

    first = next(line for line in history(tmp_path) if "prefer/loss" in line)
    assert first["prefer/loss"] == pytest.approx(0.693147, abs=1e-4)
    assert "prefer: step 1/2, loss 0.6931" in caplog.text


def test_every_method_is_under_contract() -> None:
    assert {method for method, _ in WITH_REWARD} == set(METHODS) - set(APART)


def test_an_interrupted_run_says_so_and_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("alignlab.running.run_stages", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(composed(tmp_path, "red", "evaluation=off"))
    before = json.loads((tmp_path / "run" / "status.json").read_text())["state"]

    run(composed(tmp_path, "red", "evaluation=off"))

    after = json.loads((tmp_path / "run" / "status.json").read_text())["state"]
    assert (before, after) == ("interrupted", "done")


def test_a_finished_run_is_not_done_again(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished("red", "evaluation=off")
    lines = len(history(folder))

    run(composed(folder, "red", "evaluation=off"))

    assert len(history(folder)) == lines
    assert "finished" in capsys.readouterr().out


def test_force_does_a_finished_run_again_from_the_start(tmp_path: Path) -> None:
    run(composed(tmp_path, "red", "evaluation=off"))

    run(composed(tmp_path, "red", "evaluation=off", "force=true"))

    steps = [line["step"] for line in history(tmp_path) if "fit/loss" in line]
    assert steps == [1, 2]


def test_bad_data_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{broken\n')
    (tmp_path / "data" / "test.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')

    with pytest.raises(DataError, match=r"train\.jsonl:2"):
        run(composed(tmp_path, "dpo", data=("data=jsonl", f"data.path={tmp_path}/data")))

    assert not (tmp_path / "run").exists()


def test_bad_held_out_data_is_found_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    (tmp_path / "data" / "test.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": ""}\n')

    with pytest.raises(DataError, match=r"test\.jsonl:1: 'rejected' is empty"):
        run(composed(tmp_path, "dpo", data=("data=jsonl", f"data.path={tmp_path}/data")))

    assert not (tmp_path / "run").exists()


def test_training_the_backbones_own_weights_in_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tuner=full needs float32 weights.*set model\.dtype=float32"):
        run(composed(tmp_path, "sft", "tuner=full", "model.dtype=bfloat16"))


def test_a_run_is_another_run_when_its_files_change(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    line = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
    for name in ("train", "test"):
        (tmp_path / "data" / f"{name}.jsonl").write_text(line)
    before = parse(composed(tmp_path, "dpo", data=("data=jsonl", f"data.path={tmp_path}/data"))).fingerprint

    (tmp_path / "data" / "train.jsonl").write_text(line * 2)

    assert parse(composed(tmp_path, "dpo", data=("data=jsonl", f"data.path={tmp_path}/data"))).fingerprint != before


def test_a_folder_of_another_config_is_refused(finished: Finished) -> None:
    folder = finished("red", "evaluation=off")

    with pytest.raises(RunFolderError, match="made by another config"):
        run(composed(folder, "red", "evaluation=off", "tuner.likelihood_rate=0.123"))


def test_a_run_that_diverges_stops_names_the_step_and_keeps_a_good_checkpoint(tmp_path: Path) -> None:
    words = ("tuner=full", "tuner.likelihood_rate=9.0", "method.fit.max_grad_norm=0", "method.fit.warmup_fraction=0")
    more = ("model=tiny_gpt2", "method.fit.schedule=constant", "trainer.checkpoint_every_steps=1", "evaluation=off")

    with pytest.raises(DivergedError, match=r"stage fit: .* at step \d+; the last good checkpoint is checkpoint-\d+"):
        run(composed(tmp_path, "sft", *words, *more, steps=200))

    kept = learned_at(tmp_path / "run" / "stages" / "fit")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("tuner", ["full", "lora", "ia3", "red", "clm", "blocks", "dera"])
def test_every_tuner_trains_under_likelihood_and_preference(method: str, tuner: str, finished: Finished) -> None:
    folder = finished(method, f"tuner={tuner}", "evaluation=off")

    losses = [line[f"{stages(method)[-1]}/loss"] for line in history(folder) if f"{stages(method)[-1]}/loss" in line]
    assert len(losses) == 2
    assert json.loads((folder / "run" / "report.json").read_text())["tuner"] == tuner
