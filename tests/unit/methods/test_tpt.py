"""TPT's stages: which task each trains on, what another run takes over, what is counted, and what is refused in a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import alignlab
from alignlab.config import parse
from alignlab.errors import ConfigError, DataError
from alignlab.methods.tpt.selection import entropy, lengths
from alignlab.planning import make_plan
from alignlab.training.stages import TrainStage
from run import run
from tests.contracts.test_methods import CONF
from tests.unit.methods.small_runs import lines

TASKS = (
    "data=mixture",
    *(f"+data@data.sources.{name}=toy_classes" for name in ("mood", "length")),
    *(f"data.sources.{name}.told={name}" for name in ("mood", "length")),
    *(f"data.sources.{name}.pairs=12" for name in ("mood", "length")),
    *(f"data.sources.{name}.test_pairs=4" for name in ("mood", "length")),
)
SHORT = tuple(
    f"method.{stage}.{word}"
    for stage in ("prompt", "bank", "target")
    for word in ("epochs=null", "steps=1", "batch=4", "warmup_fraction=0")
)
SIZES = ("tuner.tokens=6", "tuner.retrieved=2", "tuner.length=2")


def configs(*words: str, folder: Path = Path("nowhere"), data: tuple[str, ...] = TASKS) -> DictConfig:
    given = ("method=tpt", "model=tiny_t5", "evaluation.suites=[classification]", "evaluation.pairs=4", "method.counted_rows=4")
    places = (f"paths.runs={folder}", f"folder={folder}/run", "tracking=off", "trainer.device=cpu")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", [*given, *places, *data, *SHORT, *SIZES, *words])


def stages(*words: str) -> dict[str, tuple[str, set[str | None]]]:
    """What each stage that learns trains, and on which tasks."""
    plan = make_plan(parse(configs(*words)))
    return {
        stage.name: ("+".join(stage.trains), {group.task for group in work.groups})
        for stage, work in zip(plan.method.stages, plan.works, strict=True)
        if stage.trains
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two targets one after the other, with one store."""
    made = tmp_path_factory.mktemp("tpt")
    for target in ("mood", "length"):
        run(configs(f"data.tested={target}", "method.joint=false", f"folder={made}/{target}", folder=made))
    return made


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were trained, in order."""
    names: list[str] = []
    real = TrainStage.run
    monkeypatch.setattr(TrainStage, "run", lambda self, *given: (names.append(self.name), real(self, *given)))
    return names


def test_a_stage_trains_its_parts_on_its_tasks() -> None:
    assert stages("data.tested=mood", "method.stages=[prompt,bank,target]", "method.prompt_task=length") == {
        "prompt": ("tuner.task", {"length"}),
        "bank": ("tuner.bank", {"mood", "length"}),
        "target": ("tuner", {"mood"}),
    }


def test_whole_prompts_are_trained_on_a_source_each() -> None:
    found = stages("data.tested=mood", "tuner.retrieval=whole", "method.sources=[length,mood]", "tuner.tokens=4")

    assert found == {
        "bank-length": ("tuner.prompt0", {"length"}),
        "bank-mood": ("tuner.prompt1", {"mood"}),
        "target": ("tuner", {"mood"}),
    }


def test_the_plan_says_what_a_stage_has_of_each_task() -> None:
    plan = make_plan(parse(configs("data.tested=mood", "data.sources.mood.pairs=4", "data.cap=8")))

    assert plan.works[0].weights == {"mood": pytest.approx(1 / 3), "length": pytest.approx(2 / 3)}
    assert plan.labels is not None
    assert set(plan.labels.names) == {"cheerful", "gloomy"}


def test_a_second_target_takes_the_bank_from_the_store(folder: Path, trained: list[str]) -> None:
    banks = [(folder / target / "stages/bank/result/adapter_model.safetensors").read_bytes() for target in ("mood", "length")]

    run(configs("data.tested=length", "method.joint=true", f"folder={folder}/joint", folder=folder))

    assert banks[0] == banks[1]
    assert trained == ["target"]


def test_a_frozen_bank_stands_unchanged_in_the_targets_result(folder: Path) -> None:
    from safetensors.torch import load_file

    bank, target = (load_file(folder / f"mood/stages/{name}/result/adapter_model.safetensors") for name in ("bank", "target"))

    (name,) = bank
    assert torch.equal(bank[name], target[name])
    assert len(target) == 2


def test_a_finished_run_loads_with_bank_and_prompt(folder: Path) -> None:
    policy = alignlab.load(folder / "mood", device="cpu")

    (weighted,) = policy.tuner.passes(1.0)
    assert len(weighted.prefix.ids) == 4
    assert policy.backbone.codec.eos not in weighted.prefix.ids


def test_what_each_task_chose_is_logged_and_drawn(folder: Path) -> None:
    counts = json.loads((folder / "mood/stages/target-selection/counts.json").read_text())

    assert {task: sum(each) for task, each in counts["counts"].items()} == {"mood": 8, "length": 8}  # 4 texts, 2 vectors each
    logged = {key for line in lines(folder / "mood") for key in line}
    assert {"target-selection/mood/entropy", "bank-selection/length/unchosen", "bank-selection/mean_embedding_length"} <= logged
    assert (folder / "mood/target-selection.png").stat().st_size > 1000


def test_the_length_of_vectors_stands_beside_that_of_embeddings() -> None:
    assert lengths(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.eye(2)) == {"mean_length": 3.0, "mean_embedding_length": 1.0}


def test_the_entropy_of_choices_lies_between_ln_k_and_ln_n() -> None:
    assert entropy(torch.tensor([5, 5, 0, 0])) == pytest.approx(math.log(2))
    assert entropy(torch.tensor([5, 5, 5, 5])) == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("tuner.retrieved=7",), r"tuner\.retrieved=7 vectors cannot be chosen from a bank of tuner\.tokens=6"),
        (("method.sources=[mood,mood]",), "method.sources names mood twice; give every task a name of its own"),
        (("method.stages=[target,bank]",), "must be some of prompt, bank and target, in this order"),
        (("method.stages=[target]",), r"needs trained bank.*stage `bank` makes it.*tuner\.bank_from="),
        (("method.bank_by=source",), "must name the tasks of the bank"),
        (("method.sources=[moods]",), "unknown source in the stage's sources 'moods'"),
        (("data.tested=moods",), "unknown source in data.tested 'moods'"),
        (("model=tiny",), "needs source apart from the answer.*take an encoder-decoder model"),
        (("model=tiny_roberta", "data.tested=mood"), "needs source apart from the answer.*take an encoder-decoder model"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_plan(parse(configs(*words)))


def test_another_tuner_has_no_parts_to_train() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("run", ["method=tpt", "tuner=lora", "model=tiny_t5", "method.bank_by=mixed", *TASKS])

    with pytest.raises(ConfigError, match=r"needs token bank.*take tuner=token_bank"):
        parse(raw)


def test_a_source_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": "b"}\n')
    words = ("+data@data.sources.empty=text_classification", f"data.sources.empty.path={tmp_path}")

    with pytest.raises((DataError, ConfigError), match=r"the train split has no row|source empty has no rows"):
        make_plan(parse(configs(*words)))
