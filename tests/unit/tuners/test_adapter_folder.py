"""An adapter's folder names its base without a path of this machine, and is found again when a run has moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel

from alignlab.models.config import EMBEDDED
from alignlab.tuners import TUNERS
from alignlab.tuners.peft_tuner import public_name
from tests.conftest import backbone
from tests.unit.conftest import SETTINGS
from tests.unit.tuners.families import outputs

PEFT = ("lora", "red", "clm", "ia3")


def attached(name: str, origin: str) -> Any:
    """A tuner on a Llama that was loaded from `origin`."""
    model = backbone("llama").model
    model.name_or_path = model.config._name_or_path = origin
    config = TUNERS[name].config(name=name, likelihood_rate=1e-2, preference_rate=1e-2, **SETTINGS[name])
    return TUNERS[name].build(config, model)


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        (str(EMBEDDED / "tiny"), "alignlab/tiny"),
        ("/somewhere/models/stories260k", "stories260k"),
        ("", None),
    ],
)
def test_a_base_has_a_name_that_others_may_know(origin: str, name: str | None) -> None:
    model = backbone("llama").model
    model.name_or_path = origin

    assert public_name(model) == name


@pytest.mark.parametrize("name", PEFT)
def test_no_file_of_an_adapter_holds_an_absolute_path(name: str, tmp_path: Path) -> None:
    tuner = attached(name, str(tmp_path / "models" / "mine"))

    tuner.save(tmp_path / "adapter")

    texts = [file.read_text(encoding="utf-8") for file in (tmp_path / "adapter").iterdir() if file.suffix in (".json", ".md")]
    assert len(texts) == 2
    assert not any(str(tmp_path) in text for text in texts)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "mine"
    assert tuner.module.get_base_model().name_or_path == str(tmp_path / "models" / "mine")


@pytest.mark.parametrize("name", PEFT)
def test_a_base_in_the_run_is_named_from_the_adapter_and_moves_with_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    tuner = attached(name, "")
    backbone("llama").model.save_pretrained(run / "sft")
    tuner.set_base_model(run / "sft")
    tuner.save(run / "fit" / "result")
    shutil.move(run, tmp_path / "moved")

    written = json.loads((tmp_path / "moved" / "fit" / "result" / "adapter_config.json").read_text())
    monkeypatch.chdir(tmp_path / "moved" / "fit" / "result")
    with_base = AutoPeftModelForCausalLM.from_pretrained(".")
    on_base = PeftModel.from_pretrained(backbone("llama").model, tmp_path / "moved" / "fit" / "result")

    assert written["base_model_name_or_path"] == "../../sft"
    assert torch.equal(outputs(with_base.eval()), outputs(on_base))
