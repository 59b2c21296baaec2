"""The configs of CLM, of its comparison rows and of a fine-tuned base: what they choose, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig

from alignlab.command_line import sentence
from alignlab.config import parse
from alignlab.errors import ConfigError
from alignlab.methods import METHODS
from alignlab.methods.preference import PreferenceConfig
from alignlab.training.references import Base, OtherModel, Reference, Start
from alignlab.training.stages import TrainStage
from alignlab.tuners import TUNERS
from tests.unit.conftest import checked, fit_config

Compose = Callable[..., DictConfig]

RATES = {"likelihood_rate": 1e-2, "preference_rate": 1e-2}
SETTINGS: dict[str, dict[str, Any]] = {
    "clm": {"blocks": 1, "start": "identity", "merge": "logits", "targets": None, "writes": None},
    "blocks": {"side": "bottom", "count": 1},
    "dera": {"aligned": None},
    "full": {},
}


def tuner(name: str, **changes: Any) -> Any:
    """A tuner's config, unchecked."""
    return TUNERS[name].config(name=name, **{**RATES, **SETTINGS[name], **changes})


def preference(**changes: Any) -> PreferenceConfig:
    """A method on pairs, unchecked."""
    values: dict[str, Any] = {
        "name": "clm",
        "loss": "sigmoid",
        "beta": 0.1,
        "smoothing": 0.0,
        "length_norm": "sum",
        "reference": "base",
        "cache_reference": True,
        "likelihood": 0.0,
        "prefer": fit_config(),
        "sft_first": True,
        "sft": fit_config(),
    }
    return PreferenceConfig(**{**values, **changes})


def stages(method: str, config: Any) -> dict[str, TrainStage]:
    """A method's stages by name, in their order."""
    return {stage.name: stage for stage in METHODS[method].build(config).stages}


def refused(compose: Compose, *words: str) -> str:
    """What the person at the keyboard reads."""
    with pytest.raises((ConfigError, HydraException)) as info:
        parse(compose(*words))
    return sentence(info.value) or "a traceback"


@pytest.mark.parametrize(("method", "chosen"), [("clm", "clm")])
def test_a_method_chooses_its_tuner(composed: Compose, method: str, chosen: str) -> None:
    assert parse(composed(f"method={method}")).tuner.name == chosen


def test_the_defaults_are_those_of_the_paper(composed: Compose) -> None:
    config = parse(composed("method=clm"))

    method, block = config.method, config.tuner
    assert (block.blocks, block.start, block.merge) == (1, "identity", "logits")
    assert (method.loss, method.beta, method.length_norm, method.reference) == ("sigmoid", 0.005, "sum", "base")
    assert (method.prefer.epochs, method.prefer.batch, method.prefer.warmup_fraction) == (1, 128, 0.1)
    assert (method.prefer.schedule, method.prefer.weight_decay, method.prefer.learning_rate) == ("cosine", 0.0, 1e-6)
    assert (method.sft.epochs, method.sft.batch, method.sft.learning_rate) == (1, 128, 2e-6)
    assert not method.sft_first


def test_own_blocks_are_tuned_at_the_rate_of_table_6(composed: Compose) -> None:
    config = parse(composed("method=dpo", "tuner=blocks"))

    assert (config.tuner.side, config.tuner.count, config.method.prefer.learning_rate) == ("bottom", 1, 5e-6)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("clm", {"blocks": 0}, r"tuner\.blocks=0 must be at least 1 and at most 3\."),
        ("clm", {"blocks": 4}, r"tuner\.blocks=4 must be at least 1 and at most 3\."),
        ("clm", {"start": "zero"}, r"tuner\.start='zero' is not known; choose one of identity, random\."),
        ("clm", {"merge": "hidden"}, r"tuner\.merge='hidden' is not known; choose one of logits, embeddings\."),
        ("clm", {"preference_rate": 0.0}, r"tuner\.preference_rate=0\.0 must be above 0 and below 10\."),
        ("blocks", {"side": "middle"}, r"tuner\.side='middle' is not known; choose one of bottom, top\."),
        ("blocks", {"count": 0}, r"tuner\.count=0 must be at least 1\."),
        ("dera", {"aligned": "nowhere"}, r"tuner\.aligned=nowhere does not exist; give a folder saved by"),
    ],
)
def test_a_tuner_that_cannot_be_built_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked("tuner", tuner(name, **changes))


def test_a_folder_with_pickled_weights_is_no_aligned_model(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        checked("tuner", tuner("dera", aligned=str(tmp_path)))


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_tuner_that_can_be_built_passes(name: str) -> None:
    checked("tuner", tuner(name))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft": fit_config(batch=0)}, r"method\.sft\.batch=0 must be at least 1 and at most 1000000\."),
        ({"sft": fit_config(epochs=1.0)}, r"method\.sft: give epochs or steps"),
        ({"prefer": fit_config(loss_on="all")}, r"method\.prefer\.loss_on must be response"),
        ({"reference": "sft"}, r"method\.reference='sft' is not known; choose one of base, start, none, model:PATH\."),
    ],
)
def test_stages_that_cannot_train_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked("method", preference(**changes))


def test_what_a_config_refuses_is_refused_at_the_door(composed: Compose) -> None:
    assert refused(composed, "method=clm", "tuner.blocks=4") == "tuner.blocks=4 must be at least 1 and at most 3."


@pytest.mark.parametrize("method", ["clm", "dpo"])
def test_a_base_in_bfloat16_can_be_fine_tuned_first(composed: Compose, method: str) -> None:
    config = parse(composed(f"method={method}", "method.sft_first=true", "model.dtype=bfloat16"))

    (sft, _) = METHODS[method].build(config.method).stages
    assert sft.trains["backbone"].dtype == "float32"


@pytest.mark.parametrize("name", ["blocks", "dera"])
def test_weights_that_are_tuned_in_place_need_float32(composed: Compose, name: str) -> None:
    said = refused(composed, "method=dpo", f"tuner={name}", "model.dtype=bfloat16")

    assert said.startswith(f"tuner={name} needs float32 weights")


def test_a_block_takes_a_backbone_in_bfloat16(composed: Compose) -> None:
    assert parse(composed("method=clm", "model.dtype=bfloat16")).model.dtype == "bfloat16"


@pytest.mark.parametrize("method", ["clm", "dpo"])
def test_a_base_is_fine_tuned_only_where_it_is_asked_for(method: str) -> None:
    without, first = stages(method, preference(sft_first=False)), stages(method, preference(sft_first=True))

    assert [(stage.name, "+".join(stage.trains)) for stage in without.values()] == [("prefer", "tuner")]
    assert [(stage.name, "+".join(stage.trains)) for stage in first.values()] == [("sft", "backbone"), ("prefer", "tuner")]


@pytest.mark.parametrize(
    ("changes", "cached"),
    [
        ({}, Base()),
        ({"cache_reference": False}, None),
        ({"reference": "start", "cache_reference": False}, Start()),
        ({"reference": "none"}, None),
    ],
)
def test_a_reference_is_computed_beforehand_where_there_is_one(changes: dict[str, Any], cached: Reference | None) -> None:
    made = stages("clm", preference(**changes))

    assert (made["sft"].cached_reference, made["prefer"].cached_reference) == (None, cached)


def test_another_model_as_the_reference_is_always_computed_beforehand(tmp_path: Path) -> None:
    made = stages("clm", preference(reference=f"model:{tmp_path}", cache_reference=False))

    assert made["prefer"].cached_reference == OtherModel(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "does not exist; give a folder saved by save_pretrained"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter; `python -m alignlab export RUN` makes a whole"),
        (["config.json", "pytorch_model.bin"], r"holds no config\.json with \*\.safetensors"),
        (["model.safetensors"], r"holds no config\.json with \*\.safetensors"),
    ],
)
def test_a_reference_that_is_no_whole_model_in_safetensors_is_refused(
    tmp_path: Path, files: list[str] | None, said: str
) -> None:
    folder = tmp_path / "model"
    for name in files or ():
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")

    with pytest.raises(ConfigError, match=rf"method\.reference=model:{folder} {said}"):
        checked("method", preference(reference=f"model:{folder}"))


def test_other_weights_of_the_reference_change_the_fingerprint(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"

    weights.write_bytes(b"1")
    before = parse(composed("method=dpo", f"method.reference=model:{tmp_path}")).fingerprint
    weights.write_bytes(b"22")
    after = parse(composed("method=dpo", f"method.reference=model:{tmp_path}")).fingerprint

    assert before != after


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": "apo_zero", "smoothing": 0.1}, r"method\.smoothing has no meaning for method\.loss=apo_zero"),
        ({"loss": "apo_zero", "reference": "none"}, r"method\.loss=apo_zero compares each response with the reference"),
    ],
)
def test_apo_zero_takes_a_reference_and_no_smoothing(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked("method", preference(**changes))


def test_a_fine_tuned_base_goes_without_a_reference_too() -> None:
    config = preference(reference="none")

    checked("method", config)

    assert list(stages("clm", config)) == ["sft", "prefer"]


def test_evaluating_trains_nothing() -> None:
    assert stages("evaluate", METHODS["evaluate"].config(name="evaluate")) == {}


def test_every_choice_of_the_tuner_changes_the_fingerprint(composed: Compose) -> None:
    choices = [(), ("tuner.blocks=2",), ("tuner.start=random",), ("tuner.merge=embeddings",)]

    fingerprints = {parse(composed("method=clm", *words)).fingerprint for words in choices}

    assert len(fingerprints) == 4


def test_only_tuners_that_hold_a_whole_model_offer_every_weight() -> None:
    offering = {name for name in SETTINGS if "every weight" in TUNERS[name].provides(tuner(name))}

    assert offering == {"dera", "full"}
