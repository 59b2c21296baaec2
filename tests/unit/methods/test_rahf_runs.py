"""Whole runs of RAHF: what they leave behind, and settings that must not change a result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import alignlab
from alignlab.exports import export
from alignlab.models.backbone import load_codec
from alignlab.models.config import EMBEDDED
from alignlab.training.trainer import FitTrainer
from tests.unit.methods.small_runs import BY_LORA, losses, planned, ran, results

Finished = Callable[..., Path]
SCIT = ("method.variant=scit",)
DUAL = ("method.variant=dual", "trainer.checkpoint_every_steps=1", "trainer.keep_checkpoints=9")
DUAL_BY_LORA = (*DUAL, BY_LORA)
LORRA = ("method.variant=lorra",)
TEMPLATE = "model.template.format='Human: {prompt}\n\nAssistant:'"
IDS = torch.arange(3, 35).reshape(2, 16)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The folder of a finished run, done once for all tests; no run finds anything in another's store."""
    done: dict[tuple[str, ...], Path] = {}

    def find(*words: str) -> Path:
        if words not in done:
            done[words] = ran(tmp_path_factory.mktemp("finished"), *words)
        return done[words]

    return find


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were trained, in order."""
    names: list[str] = []
    real = FitTrainer.fit

    def watched(self: FitTrainer) -> None:
        names.append(self._stage)
        real(self)

    monkeypatch.setattr(FitTrainer, "fit", watched)
    return names


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def plain(folder: Path) -> nn.Module:
    """A checkpoint, by transformers alone."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether both hold the same bits under the same names."""
    return (
        bool(first)
        and first.keys() == second.keys()
        and all(torch.equal(second[name], tensor) for name, tensor in first.items())
    )


@pytest.mark.parametrize(
    ("words", "base"),
    [
        ((*SCIT, "model=tiny"), "instruct/result"),
        ((*DUAL, "model=tiny"), "preferred/result"),
        ((*DUAL_BY_LORA, "model=tiny"), "preferred/whole"),
        ((*DUAL_BY_LORA, "model=tiny_gpt2"), "preferred/whole"),
    ],
    ids=["scit", "dual", "dual-by-lora", "dual-by-lora-gpt2"],
)
def test_strength_0_is_the_model_that_the_lora_sits_on_and_merged_is_strength_1(
    words: tuple[str, ...], base: str, finished: Finished, tmp_path: Path
) -> None:
    folder = finished(*words)
    policy = alignlab.load(folder, device="cpu")
    below, published = plain(folder / "stages" / base), plain(EMBEDDED / words[-1].removeprefix("model="))

    export(folder, tmp_path / "plain")

    with policy.tuner.at(0.0):
        assert torch.equal(logits(policy.model), logits(below))
    with policy.off():
        assert torch.equal(logits(policy.model), logits(below))
    torch.testing.assert_close(logits(plain(tmp_path / "plain")), logits(policy.model), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(policy.model), logits(below), atol=1e-3)
    assert not torch.allclose(logits(below), logits(published), atol=1e-3)


@pytest.mark.parametrize("words", [LORRA, DUAL], ids=["prefixes", "models"])
def test_states_read_from_the_store_train_as_those_computed_on_the_fly(words: tuple[str, ...], finished: Finished) -> None:
    # Rounding depends on the batch; where a gradient is all rounding, Adam would blow it up to full steps.
    ten = ("method.fit.steps=10", "method.fit.adam_epsilon=1e-4", *words)

    computed, kept = (finished(*ten, f"method.cached={wanted}") for wanted in ("false", "true"))

    assert losses(kept) == pytest.approx(losses(computed), rel=1e-6)
    assert len(losses(kept)) == 10
    assert (kept / "stages" / "shift" / "states.safetensors").is_file()


def test_lorra_is_scit_without_its_first_stage(finished: Finished) -> None:
    numbers = ("method.window=64", "method.layers.depth=[0.31,0.625]")

    lorra, rest = finished(*LORRA), finished(*SCIT, "method.stages=[shift,fit]", *numbers)

    assert losses(lorra) == losses(rest)
    assert equal(results(lorra), results(rest))


def test_instructed_the_first_loss_is_another_one(finished: Finished) -> None:
    first, second = losses(finished(*LORRA))[0], losses(finished(*SCIT, "model=tiny"))[0]

    assert first != pytest.approx(second, rel=1e-3)


def test_a_lora_above_the_highest_layer_changes_nothing(finished: Finished) -> None:
    without, beyond = finished(*LORRA), finished(*LORRA, "method.beyond=1")

    more = results(beyond)
    added = {name: more.pop(name) for name in more.keys() - results(without).keys()}
    assert losses(beyond) == losses(without)
    assert equal(more, results(without))
    assert {name.split(".layers.")[1].partition(".lora")[0] for name in added} == {"2.self_attn.q_proj", "2.self_attn.v_proj"}
    assert not any(tensor.any() for name, tensor in added.items() if ".lora_B." in name)


def stopped(finished_run: Path, to: Path, stage: str, behind: tuple[str, ...]) -> None:
    """A copy of a run as one that was stopped after the first step of a stage, on a machine with nothing in store."""
    stopped_before(finished_run, to, behind)
    folder = to / "run" / "stages" / stage
    for left in ("result", "whole", "checkpoint-2"):
        shutil.rmtree(folder / left, ignore_errors=left == "whole")
    (folder / "done.json").unlink()


def stopped_before(finished_run: Path, to: Path, behind: tuple[str, ...]) -> None:
    """A copy of a run as one that was stopped between two stages."""
    shutil.copytree(finished_run, to / "run")
    for later in behind:
        shutil.rmtree(to / "run" / "stages" / later)
    (to / "run" / "status.json").unlink()


@pytest.mark.parametrize("words", [DUAL, DUAL_BY_LORA], ids=["every-weight", "by-lora"])
@pytest.mark.parametrize(
    ("stage", "behind", "again"),
    [
        ("dispreferred", ("preferred", "shift", "fit"), ["dispreferred", "preferred", "fit"]),
        ("preferred", ("shift", "fit"), ["preferred", "fit"]),
        ("fit", (), ["fit"]),
    ],
    ids=["dispreferred", "preferred", "fit"],
)
def test_dual_gone_on_with_ends_with_the_bits_of_never_having_stopped(
    words: tuple[str, ...],
    stage: str,
    behind: tuple[str, ...],
    again: list[str],
    finished: Finished,
    trained: list[str],
    tmp_path: Path,
) -> None:
    straight = finished(*words, "model=tiny")
    stopped(straight, tmp_path, stage, behind)
    trained.clear()

    gone_on = ran(tmp_path, *words, "model=tiny")

    assert equal(results(gone_on), results(straight))
    assert trained == again


def test_stopped_between_its_two_models_dual_ends_with_the_bits_of_never_having_stopped(
    finished: Finished, trained: list[str], tmp_path: Path
) -> None:
    words = (*DUAL_BY_LORA, "model=tiny")
    straight = finished(*words)
    stopped_before(straight, tmp_path, ("preferred", "shift", "fit"))
    trained.clear()

    gone_on = ran(tmp_path, *words)

    assert equal(results(gone_on), results(straight))
    assert trained == ["preferred", "fit"]


def test_fit_goes_on_with_the_states_that_shift_had_kept(finished: Finished, trained: list[str], tmp_path: Path) -> None:
    words = (*LORRA, "method.cached=true", "trainer.checkpoint_every_steps=1")
    straight = finished(*words)
    stopped(straight, tmp_path, "fit", ())
    trained.clear()

    gone_on = ran(tmp_path, *words)

    assert equal(results(gone_on), results(straight))
    assert trained == ["fit"]


@pytest.mark.parametrize("words", [SCIT, DUAL], ids=["scit", "dual"])
def test_shift_leaves_a_profile_with_a_number_for_each_layer_and_a_figure(words: tuple[str, ...], finished: Finished) -> None:
    folder = finished(*words, "model=tiny")

    profile = json.loads((folder / "stages" / "shift" / "profile.json").read_text(encoding="utf-8"))
    assert profile["x"]["values"] == [1, 2]  # of four blocks: 1.24 to 2.24, or to 2.5
    assert profile["series"]
    assert all(len(values) == 2 and min(values) > 0 for values in profile["series"].values())
    assert (folder / "shift.png").is_file()


def test_an_over_long_prompt_keeps_its_reply_tag_in_all_members_and_the_plan_counts_it() -> None:
    uncut = planned(*LORRA, TEMPLATE, "method.prompt_tokens=null").works[-1]
    starts = [max(member.start for member in group.members) for group in uncut.groups]
    limit = max(starts) - 1

    plan = planned(*LORRA, TEMPLATE, "method.window=4", f"method.prompt_tokens={limit}")

    account, members = plan.works[-1].account, [group.members for group in plan.works[-1].groups]
    decode = load_codec(plan.config.model).decode
    assert all(decode(member.ids[: member.start]).endswith("\n\nAssistant:") for each in members for member in each)
    assert all(len({member.ids[member.head :] for member in each}) == 1 for each in members)
    assert max(member.start for each in members for member in each) == limit
    assert (account.read, account.kept, account.dropped) == (12, 12, {})
    assert account.cut == sum(start > limit for start in starts) > 0
    assert account.shortened == 12
