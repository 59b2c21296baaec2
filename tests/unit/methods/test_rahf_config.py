"""RAHF's config: which stages it builds, and what is refused in one sentence before any weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignlab.config import GROUPS, parse
from alignlab.data.encode import Truncation, chosen, rejected
from alignlab.errors import ConfigError, DataError
from alignlab.methods.rahf.objectives import Contrast, Match, Models, Prefixes
from alignlab.methods.rahf.stages import InstructionVariants, PromptVariants
from alignlab.training.collect import CollectStage, Stored
from alignlab.training.objectives import nll
from alignlab.training.stages import TrainStage
from alignlab.training.trainable import THE_TUNER, sentence
from tests.unit.methods.small_runs import BY_LORA, HIR, configs, planned

GOOD, BAD = "Be good.", "Be bad."
PREFIXED = f"data.prefixes={{better: {GOOD}, worse: {BAD}}}"
NO_PREFIXES = "data.prefixes={better: null, worse: null}"
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
HALVES = "data.halves={seed: 42, test: 2, max_prompt: null}"
SINGLE = {"prompt": "p", "response": "r", "label": "good"}


def stages(*words: str) -> dict[str, Any]:
    """The stages of a config, by name."""
    config = parse(configs(PREFIXED, *words))
    return {stage.name: stage for stage in GROUPS["method"]["rahf"].build(config.method).stages}


def refused(*words: str, data: tuple[str, ...] = ()) -> str:
    """What the person at the keyboard reads; the plan loads no weights."""
    with pytest.raises(ConfigError) as info:
        planned(*words, **({"data": data} if data else {}))
    said = str(info.value)
    assert "\n" not in said
    return said


def jsonl(folder: Path, line: dict[str, str]) -> tuple[str, ...]:
    """The words that choose a folder whose files have two equal lines."""
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(f"{json.dumps(line)}\n" * 2, encoding="utf-8")
    return ("data=jsonl", f"data.path={folder}")


def trained(built: dict[str, Any]) -> dict[str, str]:
    """What each stage that learns trains, in words."""
    return {
        name: sentence(stage.trains, stage.update, stage.second)
        for name, stage in built.items()
        if isinstance(stage, TrainStage)
    }


def test_scit_instructs_one_model_and_compares_its_prefixes() -> None:
    built = stages()

    assert list(built) == ["instruct", "shift", "fit"]
    assert built["instruct"].view == InstructionVariants(f"{GOOD}\n\n", f"{BAD}\n\n")
    assert built["instruct"].objective == Contrast("mean", 0.2)
    assert built["fit"].view == built["shift"].view == PromptVariants(("", f"{GOOD}\n\n", f"{BAD}\n\n"), coin_seed=42)
    assert isinstance(built["fit"].objective.direction_source, Prefixes)
    assert built["fit"].trains == THE_TUNER
    assert trained(built) == {"instruct": "backbone", "fit": "tuner"}


def test_dual_trains_two_models_and_compares_them_on_a_plain_prompt() -> None:
    built = stages("method.variant=dual")

    assert list(built) == ["dispreferred", "preferred", "shift", "fit"]
    assert (built["dispreferred"].view, built["preferred"].view) == (rejected, chosen)
    assert built["dispreferred"].objective is built["preferred"].objective is nll
    assert built["fit"].view == built["shift"].view == PromptVariants(("",), coin_seed=None)
    assert isinstance(built["fit"].objective.direction_source, Models)
    assert built["fit"].objective.direction_source.cache_key() is built["dispreferred"].second
    assert trained(built) == {"dispreferred": "a second model", "preferred": "backbone", "fit": "tuner"}


def test_only_what_the_finished_policy_needs_is_put_back_when_it_is_loaded() -> None:
    stays = {name: stage.stays for name, stage in stages("method.variant=dual").items()}

    assert stays == {"dispreferred": False, "preferred": True, "shift": False, "fit": True}


def test_both_models_of_dual_can_be_trained_by_a_lora() -> None:
    built = stages("method.variant=dual", BY_LORA)

    by_lora = {"dispreferred": "a second model, by a LoRA", "preferred": "backbone, by a LoRA"}
    assert trained(built) == {**by_lora, "fit": "tuner"}


def test_the_official_code_reads_the_good_prefix_in_dual_and_scores_the_prompt_too() -> None:
    built = stages("method.variant=dual", "method.preset=official_code")

    assert built["fit"].view == built["shift"].view == PromptVariants((f"{GOOD}\n\n",), coin_seed=None)
    assert (built["preferred"].fit.loss_on, built["fit"].fit.loss_on) == ("all", "response")


def test_the_official_codes_plain_prompt_stays_plain_under_prefixes() -> None:
    assert stages("method.preset=official_code")["fit"].view.prefixes == ("", f"{GOOD}\n\n", f"{BAD}\n\n")


def test_with_halves_the_models_are_made_on_one_and_compared_on_the_other() -> None:
    splits = {name: stage.split for name, stage in stages("method.variant=dual", HALVES).items()}

    assert splits == {"dispreferred": "rm", "preferred": "rm", "shift": "ppo", "fit": "ppo"}
    assert {stage.split for stage in stages().values()} == {"train"}


def test_shift_and_fit_read_the_same_window() -> None:
    built = stages("method.window=7", "method.prompt_tokens=99")

    assert built["shift"].truncation == built["fit"].truncation == Truncation(prompt_tokens=99, response_tokens=7)
    assert built["instruct"].truncation == Truncation()


def test_states_that_are_kept_by_shift_are_what_fit_reads() -> None:
    built = stages("method.cached=true", "method.cache_mib=7")
    shift, fit = built["shift"], built["fit"]

    assert isinstance(shift, CollectStage)
    assert isinstance(fit, TrainStage)
    assert isinstance(fit.objective, Match)
    assert isinstance(shift.store, Stored)
    assert shift.store is fit.objective.direction_source
    assert (shift.store_mib, shift.measure is not shift.store) == (7, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.layers.numbers=[]"], "method.layers.numbers=[] must name at least one layer, each once; or null"),
        (["method.layers.numbers=[4]"], "layer 4 of layers [4] does not fit 4 blocks; choose 1 to 3."),
        (["method.layers.numbers=[2,9]"], "layer 9 of layers [2, 9] does not fit 4 blocks; choose 1 to 3."),
        (["method.layers.numbers=[0]", "tuner=lora"], "method.layers.numbers[0]=0 must be at least 1."),
        (["method.layers.depth=[0.9,0.1]"], "method.layers.depth=[0.9, 0.1] must be two shares of the depth"),
        (["method.alpha=nan"], "method.alpha=nan must be a finite number."),
        (["method.alpha=inf"], "method.alpha=inf must be a finite number."),
        (["method.alpha=.nan"], "method.alpha='.nan' must be a finite number."),
        (["method.alpha=abc"], "method.alpha='abc' must be a finite number."),
        (["method.variant=sict"], "unknown method.variants 'sict'; did you mean scit? known: dual, hir, lorra,"),
        (["method.preset=papr"], "unknown method.presets 'papr'; did you mean paper? known: alignlab, official_code, paper."),
        (["method.stages=[fit,instruct]"], "method.stages=['fit', 'instruct'] must be some of sft, instruct, dispreferred,"),
        (["method.stages=[instruct,instruct]"], "method.stages=['instruct', 'instruct'] must be some of sft, instruct,"),
        (["method.stages=[instruct,ftt]"], "method.stages=['instruct', 'ftt'] must be some of sft, instruct,"),
        (["method.stages=[]"], "method.stages=[] must be some of sft, instruct, dispreferred, preferred, shift, fit, in this"),
        (
            ["method.variant=dual", "method.stages=[preferred,fit]"],
            "method.direction_source=models compares two models; add the stages",
        ),
        (["method.stages=[dispreferred,preferred,fit]"], "stage dispreferred trains a second model that no later stage reads;"),
        (
            ["method.stages=[instruct,fit]", "method.cached=true"],
            "method.cached=true keeps the states of stage shift; add it to",
        ),
        (["method.direction_source=both"], "method.direction_source='both' is not known; choose one of prefixes, models."),
        (["method.distance=l1"], "method.distance='l1' is not known; choose one of norm, squared."),
        (["method.contrast=max"], "method.contrast='max' is not known; choose one of mean, sum."),
        (["method.responses=two"], "method.responses='two' is not known; choose one of one, both."),
        (["method.smoothing=0.6"], "method.smoothing=0.6 must be at least 0 and at most 0.5."),
        (["method.kl=-1"], "method.kl=-1.0 must be at least 0 and at most 1000."),
        (["method.window=0"], "method.window=0 must be at least 1, or null."),
        (["method.prompt_tokens=0"], "method.prompt_tokens=0 must be at least 1, or null."),
        (["method.sample=0"], "method.sample=0 must be at least 1."),
        (["method.beyond=-1"], "method.beyond=-1 must be at least 0."),
        (["method.update={rank: 0, alpha: 1.0, dropout: 0.0}"], "method.update.rank=0 must be at least 1"),
        (["method.cached=true", "method.cache_mib=0.01"], "stage shift would keep "),
        ([NO_PREFIXES], "method=rahf reads a prefix pair here, and data.prefixes has none; give data.prefixes.better=TEXT"),
        ([NO_PREFIXES, "method.variant=lorra"], "method=rahf reads a prefix pair here, and data.prefixes has none;"),
        ([NO_PREFIXES, *HIR], "method=rahf reads a prefix pair here, and data.prefixes has none;"),
        (["method.instruct.loss_on=all"], "method.instruct.loss_on must be response: the compared passes have"),
        (["method.fit.loss_on=all"], "method.fit.loss_on must be response: the compared passes have different prompts."),
        ([BY_LORA], "method.update trains preferred and dispreferred, and method.stages has neither; set it to null."),
        ([HALVES, "data.part=rm"], "data.part=rm is for methods that train on one half, and rahf reads both; set it to null."),
        (["method.variant=hir"], "method=rahf needs classes as text, which none of data=toy, tuner=lora_lower, model=tiny"),
        (["method.variant=hir", "tuner=control", "control=text"], "method=rahf needs classes as text, which none of"),
        (["tuner=clm"], "method=rahf needs blocks in place, which none of data=toy, tuner=clm, model=tiny, control=dial"),
        (["tuner=control", "control=prefixes"], "method=rahf needs blocks in place, which none of data=toy, tuner=control,"),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_what_cannot_run_is_refused_in_a_sentence(words: list[str], said: str) -> None:
    assert refused(*words).startswith(said)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("method.variant=scit",), "or set method.variant=dual."),
        (("method.variant=dual", "method.preset=official_code"), "or set method.fit_prefix=false."),
    ],
)
def test_without_prefixes_a_run_is_told_what_would_need_none(words: tuple[str, ...], advice: str) -> None:
    assert refused(NO_PREFIXES, *words).endswith(advice)


def test_hir_with_a_lora_is_told_how_it_is_decoded() -> None:
    assert refused("method.variant=hir").endswith("take tuner=control control=prefixes.")


def test_what_adds_blocks_is_told_which_tuner_to_take() -> None:
    assert "take tuner=lora_lower" in refused("tuner=clm")


def test_states_that_would_take_too_much_are_told_how_to_compute_them() -> None:
    said = refused("method.cached=true", "method.cache_mib=0.01")

    assert "set method.cached=false to compute them when they are needed, or raise method.cache_mib." in said


@pytest.mark.parametrize("variant", ["scit", "dual", "lorra"])
def test_data_without_pairs_is_refused(variant: str, tmp_path: Path) -> None:
    data = (*jsonl(tmp_path, SINGLE), PREFIXED)

    said = refused(f"method.variant={variant}", data=data)

    assert said.startswith("method=rahf needs pairs, which none of data=jsonl, tuner=lora_lower, model=tiny")


def test_pairs_without_prefixes_train_two_models(tmp_path: Path) -> None:
    plan = planned("method.variant=dual", data=jsonl(tmp_path, PAIR))

    assert [len(work.groups) for work in plan.works] == [2, 2, 4, 4]


def test_a_prefix_longer_than_the_prompt_may_be_leaves_no_row_and_says_why() -> None:
    with pytest.raises(DataError, match="12 dropped: prefix and prompt longer than 9 tokens"):
        planned("method.prompt_tokens=9")


def test_a_backbone_in_half_precision_is_trained_in_float32_and_else_stays_as_it_is() -> None:
    frozen = planned("model.dtype=bfloat16", "method.variant=lorra")
    by_lora = planned("model.dtype=bfloat16", "method.variant=dual", BY_LORA)

    assert [stage.name for stage in frozen.method.stages] == ["shift", "fit"]
    assert stages()["instruct"].trains["backbone"].dtype == "float32"
    assert len(by_lora.works) == 4
