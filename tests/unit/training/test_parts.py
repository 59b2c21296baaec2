"""Trainable parts by name: which there are, what is learned of them at which settings, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from alignlab.data.encode import chosen
from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone
from alignlab.models.kinds import KINDS
from alignlab.models.policy import Policy
from alignlab.training.arguments import arguments
from alignlab.training.objectives import nll
from alignlab.training.stages import TrainStage
from alignlab.training.trainable import PartSettings, Trains, check_parts, check_reach, named_parts, training, tuner_of
from alignlab.training.trainer import FitTrainer, Step
from alignlab.tuners.config import BitfitConfig
from alignlab.tuners.lora import LoraTuner
from alignlab.tuners.weights import bitfit
from tests.conftest import CODEC, backbone
from tests.unit.conftest import attached, fit_config, learned, session_in
from tests.unit.methods.readings import LIMITS, SOURCE

SETTINGS = PartSettings()
LOOKED_AT = torch.tensor([[2, 5, 6, 7]])


class TwoHalves(LoraTuner):
    """A LoRA that names its B matrices."""

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"bank": [parameter for name, parameter in self.module.named_parameters() if ".lora_B." in name]}


def classifier(tuner: str = "lora") -> Policy:
    """A random BERT with a head of two classes, and a LoRA that trains a copy of it; or its biases, tuned in place."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(CODEC.tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config).eval().requires_grad_(False)
    if tuner == "bitfit":
        return Policy(
            Backbone("bert", model, CODEC, "bert", KINDS["classifier"].implementation()),
            bitfit(BitfitConfig("bitfit", 1e-3, 1e-3), model),
        )
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    return Policy(Backbone("bert", model, CODEC, "bert", KINDS["classifier"].implementation()), LoraTuner(model, lora))


def halved() -> Policy:
    """A causal model with a LoRA of two parts."""
    model = backbone("llama")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    return Policy(model, TwoHalves(model.model, config))


def groups(policy: Policy, trains: Trains, folder: Path, **changes: Any) -> list[tuple[float, float, set[str]]]:
    """Rate, decay and names of parameters of each group of the optimiser."""
    session, fit = session_in(folder), fit_config(**{"learning_rate": 0.5, "weight_decay": 0.25, **changes})
    names = {id(parameter): name for name, parameter in policy.model.named_parameters()}
    with training(policy, trains) as parts, policy.only(parts.parameters()):
        args = arguments(fit, session.trainer, folder, 2, session.seed)
        optimizer = FitTrainer(Step(policy, nll), "fit", parts, session, [], args).create_optimizer()
    return [
        (group["lr"], group["weight_decay"], {names[id(parameter)] for parameter in group["params"]})
        for group in optimizer.param_groups
    ]


def moved(policy: Policy, before: dict[str, Tensor]) -> set[str]:
    """The names of the weights that are others now."""
    return {name for name, parameter in policy.model.named_parameters() if not torch.equal(parameter, before[name])}


def now(policy: Policy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


def test_a_classifier_has_its_adapters_copy_of_the_head_as_a_part() -> None:
    policy = classifier()

    parts = named_parts(policy.backbone.model, tuner_of(policy))

    assert list(parts) == ["backbone", "tuner", "head"]
    assert [tuple(parameter.shape) for parameter in parts["head"]] == [(2, 16), (2,)]
    assert {id(parameter) for parameter in parts["head"]} < {id(parameter) for parameter in parts["tuner"]}
    assert not {id(parameter) for parameter in parts["backbone"]} & {id(parameter) for parameter in parts["tuner"]}


def test_a_head_beside_the_tuner_has_a_rate_and_a_decay_of_its_own(tmp_path: Path) -> None:
    policy = classifier()

    made = groups(policy, {"tuner": SETTINGS, "head": PartSettings(0.125, 0.75)}, tmp_path)

    own = "classifier.modules_to_save.default."
    lora = {name for name, _ in policy.model.named_parameters() if ".lora_" in name}
    assert made == [(0.5, 0.25, lora), (0.125, 0.75, {f"{own}weight"}), (0.125, 0.0, {f"{own}bias"})]


def test_a_tuner_alone_takes_its_head_with_it(tmp_path: Path) -> None:
    made = groups(classifier(), {"tuner": SETTINGS}, tmp_path)

    names = set[str]().union(*(names for _, _, names in made))
    assert {name for name in names if name.startswith("classifier.")} == {
        f"classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")
    }
    assert {rate for rate, _, _ in made} == {0.5}


@pytest.mark.parametrize(
    ("tuner", "trains", "files"),
    [
        ("lora", {"tuner": SETTINGS, "head": SETTINGS}, {"adapter_model.safetensors"}),
        ("lora", {"head": SETTINGS}, {"adapter_model.safetensors"}),
        # The head is one of the weights that the tuner tunes.
        ("bitfit", {"tuner": SETTINGS, "head": SETTINGS}, {"weights.safetensors"}),
        ("bitfit", {"head": SETTINGS}, {"weights.safetensors"}),
        ("lora", {"backbone": SETTINGS}, {"model.safetensors"}),
        ("lora", {"backbone": SETTINGS, "head": SETTINGS}, {"lm/model.safetensors", "control/adapter_model.safetensors"}),
    ],
)
def test_what_is_kept_of_a_classifiers_parts_puts_them_back(
    tuner: str, trains: Trains, files: set[str], tmp_path: Path
) -> None:
    policy, fresh = classifier(tuner), classifier(tuner)
    with training(policy, trains) as parts, torch.no_grad():
        for parameter in parts.parameters():
            parameter.add_(1.0)
        parts.save(tmp_path)
    before = now(fresh)

    with training(fresh, trains) as parts:
        parts.load(tmp_path)

    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.safetensors")} == files
    assert not moved(fresh, now(policy))
    assert moved(fresh, before)


def test_a_part_of_a_tuner_is_trained_by_itself_and_the_whole_tuner_is_kept(tmp_path: Path) -> None:
    policy = halved()
    before = now(policy)
    stage = TrainStage("bank", "train", chosen, nll, fit_config(steps=2), trains={"tuner.bank": SETTINGS})

    stage.run(policy, stage.prepare(SOURCE, CODEC, LIMITS), session_in(tmp_path))

    assert moved(policy, before) == {name for name in before if ".lora_B." in name}
    kept = load_file(tmp_path / "stages" / "bank" / "result" / "adapter_model.safetensors")
    assert {name.rpartition(".lora_")[2] for name in kept} == {"A.weight", "B.weight"}


def test_a_part_of_a_tuner_beside_the_tuner_leaves_it_the_rest(tmp_path: Path) -> None:
    policy = halved()

    made = groups(policy, {"tuner": SETTINGS, "tuner.bank": PartSettings(learning_rate=0.125)}, tmp_path)

    assert [(rate, {".lora_B." in name for name in names}) for rate, _, names in made] == [(0.5, {False}), (0.125, {True})]


def test_the_rate_of_each_part_with_its_own_is_logged(tmp_path: Path) -> None:
    trains = {"tuner": PartSettings(learning_rate=4e-3), "tuner.bank": PartSettings(learning_rate=1e-3)}
    fit = fit_config(steps=2, schedule="constant", warmup_fraction=0.0)
    stage, session = TrainStage("fit", "train", chosen, nll, fit, trains=trains), session_in(tmp_path)

    stage.run(halved(), stage.prepare(SOURCE, CODEC, LIMITS), session)

    (line, _) = [entry for entry in session.ledger.history() if "fit/loss" in entry]
    assert (line["fit/tuner_learning_rate"], line["fit/tuner.bank_learning_rate"]) == (4e-3, 1e-3)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_backbone_in_half_precision_is_trained_and_kept_in_float32(half: torch.dtype, tmp_path: Path) -> None:
    def policy() -> Policy:
        made = attached("red", backbone("llama"))
        made.model.to(half)
        return made

    trained, fresh = policy(), policy()
    # One step of 1e-6 is less than half of what parts two neighbours in half precision, at numbers of order 0.2.
    fit = fit_config(steps=1, learning_rate=1e-6, warmup_fraction=0.0)
    stage = TrainStage("sft", "train", chosen, nll, fit, trains={"backbone": PartSettings(dtype="float32")})
    before = now(trained)

    stage.run(trained, stage.prepare(SOURCE, CODEC, LIMITS), session_in(tmp_path))
    stage.restore(fresh, tmp_path / "stages" / "sft")

    name = "model.layers.0.mlp.up_proj.weight"
    kept = load_file(tmp_path / "stages" / "sft" / "result" / "model.safetensors")[name]
    assert {parameter.dtype for parameter in trained.model.parameters()} <= {half, torch.float32}
    assert kept.dtype == torch.float32
    assert (kept - before[name].float()).abs().mean() == pytest.approx(1e-6, rel=0.05)  # AdamW's first step is the rate
    assert trained.model.get_parameter(name).dtype == half
    assert not moved(fresh, now(trained))


def test_a_head_in_float32_reads_a_trunk_in_bfloat16() -> None:
    policy = classifier()
    policy.model.to(torch.bfloat16)
    with torch.no_grad():
        plain = policy.model(LOOKED_AT).logits

    with training(policy, {"tuner": SETTINGS, "head": PartSettings(dtype="float32")}), torch.no_grad():
        inside = policy.model(LOOKED_AT).logits
    with torch.no_grad():
        after = policy.model(LOOKED_AT).logits

    assert (plain.dtype, inside.dtype, after.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    torch.testing.assert_close(inside, plain.float(), atol=2e-3, rtol=1e-2)  # of logits near 0.1, rounded to 8 bits
    assert torch.equal(after, plain)


@pytest.mark.parametrize(
    ("trains", "said"),
    [
        ({"head": SETTINGS}, "a LlamaForCausalLM has no head to train beside its trunk; train backbone or tuner."),
        ({"tunr": SETTINGS}, "unknown part to train 'tunr'; did you mean tuner? known: backbone, tuner."),
        ({"tuner.bank": SETTINGS}, "unknown part to train 'tuner.bank'; did you mean tuner? known: backbone, tuner."),
        ({}, "every part of none is frozen, so the stage has nothing to learn."),
        ({"tuner": PartSettings(learning_rate=0.0)}, "every part of tuner is frozen, so the stage has nothing to learn."),
        (
            {"tuner": PartSettings(learning_rate=-1.0)},
            "learning_rate=-1.0 of part tuner must be a finite number of at least 0.",
        ),
        ({"tuner": PartSettings(weight_decay=float("nan"))}, "weight_decay=nan of part tuner must be a finite number of at"),
        ({"tuner": PartSettings(dtype="int8")}, "dtype='int8' of part tuner is not known; choose one of float32, bfloat16."),
    ],
)
def test_parts_that_cannot_be_trained_are_refused_in_a_sentence(trains: Trains, said: str) -> None:
    policy = attached("lora", backbone("llama"))

    with pytest.raises(ConfigError) as info:
        check_parts(trains, policy.backbone.model, tuner_of(policy))

    assert str(info.value).startswith(said)


def test_weights_that_are_tuned_in_place_are_not_trained_twice() -> None:
    policy = attached("full", backbone("llama"))

    with pytest.raises(ConfigError, match="this tuner is some of the backbone's own weights; a stage trains either"):
        check_parts({"backbone": SETTINGS, "tuner": SETTINGS}, policy.backbone.model, tuner_of(policy))


def test_only_what_is_named_takes_gradients_inside_and_nothing_has_changed_outside() -> None:
    policy = classifier()
    required = [parameter.requires_grad for parameter in policy.model.parameters()]

    with training(policy, {"head": SETTINGS}) as parts, policy.only(parts.parameters()):
        inside = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}

    assert inside == {f"classifier.modules_to_save.default.{kind}" for kind in ("weight", "bias")}
    assert [parameter.requires_grad for parameter in policy.model.parameters()] == required
    assert len(learned(policy)) > len(inside)


@pytest.mark.parametrize("targets", [["lm_head"], r".*layers\.1\..*_proj"])
def test_what_stands_above_all_that_is_compared_is_refused(targets: list[str] | str) -> None:
    model = backbone("llama").model
    tuner = LoraTuner(model, peft.LoraConfig(target_modules=targets))

    with pytest.raises(ConfigError, match=r"^all that is trained stands above block 1, "):
        check_reach({"tuner": SETTINGS}, model, tuner, 1)


def test_what_stands_in_a_block_that_is_compared_is_trained() -> None:
    model = backbone("llama").model

    check_reach({"tuner": SETTINGS}, model, LoraTuner(model, peft.LoraConfig(target_modules=["lm_head", "q_proj"])), 1)
