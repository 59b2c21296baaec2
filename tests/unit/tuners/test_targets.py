"""`tuner.targets` and `tuner.writes`: names or a pattern, and what is said of those that match nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from alignlab.errors import ConfigError, ModelError
from alignlab.tuners import TUNERS
from alignlab.tuners.config import LayersConfig
from tests.conftest import backbone
from tests.unit.conftest import SETTINGS, checked
from tests.unit.tuners.families import model_of

LOWER = {**SETTINGS["lora"], "below": LayersConfig([1], [0.31, 0.56]), "beyond": 0}
ALL: dict[str, dict[str, Any]] = {**SETTINGS, "lora_lower": LOWER}


def config(name: str, **changes: Any) -> Any:
    return TUNERS[name].config(name=name, likelihood_rate=1e-2, preference_rate=1e-2, **{**ALL[name], **changes})


def placed(name: str, **changes: Any) -> list[str]:
    """The layers of a Llama that a tuner sits on, attached without weights as a plan does it."""
    wanted = config(name, **changes)
    checked("tuner", wanted)
    model = backbone("llama").model.to("meta")
    return list(TUNERS[name].build(wanted, model).module.base_model.targeted_module_names)


@pytest.mark.parametrize("targets", [["self_attn.o_proj"], r".*\.self_attn\.o_proj"])
@pytest.mark.parametrize(("name", "more"), [("red", {}), ("lora", {}), ("ia3", {"feedforward": []}), ("lora_lower", {})])
def test_names_and_a_pattern_name_the_same_layers(name: str, more: dict[str, Any], targets: list[str] | str) -> None:
    blocks = 1 if name == "lora_lower" else 3

    assert placed(name, targets=targets, **more) == [f"model.layers.{index}.self_attn.o_proj" for index in range(blocks)]


@pytest.mark.parametrize("name", ["red", "lora", "ia3", "lora_lower"])
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["dwon_proj"], r"tuner\.targets: 'dwon_proj' names no layer of this model; nearest here: mlp\.down_proj"),
        (["down_proj", "o_porj"], r"tuner\.targets: 'o_porj' names no layer of this model; nearest here: .*self_attn\.o_proj"),
        (r".*\.mlp\.dwon_proj", r"names no layer of this model; nearest here: .*mlp\.down_proj"),
        (["mlp"], r"'mlp' names model\.layers\.0\.mlp, a LlamaMLP; name layers of type Linear or .*mlp\.down_proj"),
    ],
)
def test_a_name_that_nothing_has_is_refused_without_weights(name: str, targets: list[str] | str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        placed(name, targets=targets)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("red", {"targets": []}, r"tuner\.targets=\[\] would edit nothing; give names, or null for the place\."),
        ("red", {"targets": ["a"], "place": "plus"}, r"tuner\.place=plus and tuner\.targets=\['a'\] exclude each other"),
        ("red", {"targets": 3}, r"tuner\.targets=3 must be a list of names, one pattern that matches whole names, or null"),
        ("red", {"targets": ""}, r"tuner\.targets='' must be a list of names"),
        ("red", {"targets": ["a", ""]}, r"tuner\.targets=\['a', ''\] must be a list of names"),
        ("lora", {"targets": "*_proj"}, r"tuner\.targets=\*_proj is no pattern \(nothing to repeat"),
        ("ia3", {"targets": []}, r"tuner\.targets=\[\] would learn nothing"),
        ("ia3", {"feedforward": ["down_proj"]}, r"tuner\.feedforward=\['down_proj'\] needs tuner\.targets, which is null"),
        ("clm", {"writes": []}, r"tuner\.writes=\[\] silences nothing"),
        ("clm", {"targets": "layers.0"}, r"tuner\.targets names a block, and tuner\.writes what in it writes"),
        ("clm", {"targets": ["a", "b"], "writes": ["c"]}, r"tuner\.targets=\['a', 'b'\] must name one block"),
    ],
)
def test_a_config_that_names_nothing_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked("tuner", config(name, **changes))


def test_ia3_scales_the_input_of_what_is_named_feedforward() -> None:
    tuner = TUNERS["ia3"].build(
        config("ia3", targets=["k_proj", "down_proj"], feedforward=["down_proj"]), backbone("llama").model
    )

    # A key has 2 x 8 outputs; the feed-forward's inner width is 64.
    assert sorted({parameter.numel() for parameter in tuner.parameters()}) == [16, 64]


def test_feedforward_layers_are_targets() -> None:
    with pytest.raises(
        ConfigError, match=r"tuner\.feedforward names model\.layers\.0\.mlp\.down_proj, which is none of tuner\.ta"
    ):
        placed("ia3", targets=["k_proj"], feedforward=["down_proj"])


@pytest.mark.parametrize(("name", "said"), [("lora", "a LoRA sits"), ("ia3", "IA3 sits")])
def test_what_peft_has_no_choice_for_is_said_with_the_key(name: str, said: str) -> None:
    with pytest.raises(
        ModelError, match=rf"peft has no choice of its own where {said} in models of type 'glm4'; give tuner\.t"
    ):
        TUNERS[name].build(config(name, targets=None), model_of("glm4"))


def test_clm_takes_the_first_block_as_it_is_found() -> None:
    model = model_of("gpt_neox")

    tuner = TUNERS["clm"].build(config("clm", writes=["attention.dense", "mlp.dense_4h_to_h"]), model)

    assert tuner.module.base_model.targeted_module_names == ["gpt_neox.layers.0"]


@pytest.mark.parametrize("targets", [["layers.0"], r".*layers\.0"])
def test_clm_takes_the_block_that_is_named(targets: list[str] | str) -> None:
    assert placed("clm", targets=targets, writes=["self_attn.o_proj", "mlp.down_proj"]) == ["model.layers.0"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"writes": ["self_attn.o_porj"]},
            r"tuner\.writes: model\.layers\.0 has no 'self_attn\.o_porj'; nearest here: self_attn\.o_p",
        ),
        ({"writes": ["mlp.down_proj"], "targets": r".*layers\.\d"}, r"names model\.layers\.0, model\.layers\.1, .* one block"),
        ({"writes": ["mlp.down_proj"], "targets": ["layer.0"]}, r"tuner\.targets: 'layer\.0' names no layer of this model"),
    ],
)
def test_a_mistyped_block_is_refused_without_weights(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        placed("clm", **changes)


def test_what_is_chosen_is_stored_with_the_adapter(tmp_path: Any) -> None:
    tuner = TUNERS["red"].build(config("red", targets=["self_attn.o_proj"]), backbone("llama").model)

    tuner.save(tmp_path)

    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["self_attn.o_proj"]


@pytest.mark.parametrize("name", ["red", "lora"])
def test_on_the_head_there_is_one_strength_for_all_rows(name: str) -> None:
    tuner = TUNERS[name].build(config(name, targets=["lm_head"]), backbone("llama").model)

    assert not tuner.per_row
    with pytest.raises(Exception, match=r"one strength per batch, not one per row: the adapter sits on the head"):
        tuner.at(torch.tensor([0.0, 1.0]))
