"""An adapter for other engines: a LoRA folder scaled to a strength, which vLLM takes, the same as GGUF for llama.cpp, and RED's
shift as llama.cpp's control vector.

Folders are written from folders, so no backbone is loaded. Shapes: O and I width of a layer's output and input, K rank, D
width.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig

from alignlab.errors import ControlError, ModelError
from alignlab.models.export import whole_folder
from alignlab.models.gguf import Names, architecture_of, write_tensors
from alignlab.models.strength import checked_strengths
from alignlab.registry import unknown
from alignlab.tuners.lora import OVERWRITING
from alignlab.tuners.targets import RED_TARGETS

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
"""Files of a PEFT adapter."""
ADAPTER = "adapter.gguf"
"""llama.cpp's form of a LoRA, beside PEFT's in its folder."""
SCALED = re.compile(r"\.lora_(B|embedding_B)(\.|$)")
"""In the name of a factor that is multiplied by the strength."""
IN_FRONT = "base_model.model."
"""Of the names in a PEFT adapter's file."""


def scaled_lora(adapter: Path, to: Path, strength: float) -> None:
    """Writes a LoRA folder whose update is `strength` times that of `adapter`, to be used at full strength; at 1 the same bits.

    B is scaled, and not alpha, which some engines round or read as "not given" where it is 0.

    Raises:
        ModelError: `adapter` is no plain LoRA, or `to` already holds files.
        ControlError: the strength is not a finite number.
    """
    (strength,) = checked_strengths(strength)
    config, tensors = plain_lora(adapter), load_file(adapter / TENSORS)
    if strength != 1.0:
        tensors = {name: held * strength if SCALED.search(name) else held for name, held in tensors.items()}
    _write(to, tensors, config)


def _write(to: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """The folder of an adapter, whole or not at all. Raises ModelError where it already holds files."""
    if to.exists() and any(to.iterdir()):
        raise ModelError(f"{to} already holds files; export into a new folder.")
    with whole_folder(to) as scratch:
        save_file(tensors, scratch / TENSORS, metadata={"format": "pt"})
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def class_lora(adapter: Path, to: Path, name: str) -> None:
    """Writes the LoRA of one class of a control as a LoRA folder of its own, on the backbone that the control belongs to.

    Raises ModelError for a control of another form, and where `to` already holds files; ControlError for an unknown class.
    """
    config = _read(adapter)
    if config.get("form") != "lora":
        raise ModelError(f"a control in the form {config.get('form')} stands in the text and has no LoRA; export it as plain.")
    if config.get("modules_to_save"):
        raise ModelError(f"{adapter} has whole modules that were trained beside it; export it as plain.")
    if name not in config["classes"]:
        raise ControlError(unknown("class", name, config["classes"]))
    number = config["classes"].index(name)
    tensors: dict[str, Tensor] = {}
    layers: set[str] = set()
    for key, held in load_file(adapter / TENSORS).items():
        layer, _, factor = key.rpartition(".control_lora.")
        tensors[f"{layer}.lora_{factor}.weight"] = held[number].contiguous()
        layers.add(layer.removeprefix(IN_FRONT))
    written = LoraConfig(
        r=config["rank"],
        lora_alpha=config["alpha"],
        target_modules=sorted(layers),
        task_type=config["task_type"],
        inference_mode=True,
        base_model_name_or_path=config["base_model_name_or_path"],
    )
    _write(to, tensors, {key: sorted(value) if isinstance(value, set) else value for key, value in written.to_dict().items()})


def plain_lora(adapter: Path) -> dict[str, Any]:
    """The configuration of a LoRA folder whose update can be scaled. Raises ModelError, with the reason, for any other."""
    config = _read(adapter)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"a {kind} adapter has no LoRA form: what it changes is no product of two thin matrices; export it as plain"
            " or gguf."
        )
    start = config.get("init_lora_weights", True)
    overwrites = isinstance(start, str) and start.lower().startswith(OVERWRITING)
    for wrong, why in (
        (config.get("use_dora"), "a DoRA has the strengths 0 and 1 only"),
        (config.get("bias", "none") != "none", "its biases overwrite the backbone's own"),
        (config.get("modules_to_save"), "whole modules were trained beside it, which no strength scales"),
        (config.get("trainable_token_indices"), "rows of the embedding were trained beside it, which no strength scales"),
        (overwrites, f"its start {start!r} was taken out of the backbone's weights"),
    ):
        if wrong:
            raise ModelError(f"{adapter} is no plain LoRA: {why}; export it as plain.")
    return config


def _read(adapter: Path) -> dict[str, Any]:
    """The configuration of a PEFT adapter. Raises ModelError where there is none."""
    try:
        config: dict[str, Any] = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{adapter} holds no PEFT adapter ({CONFIG} cannot be read); give the folder of one.") from error
    return config


def lora_gguf(folder: Path, backbone: PreTrainedConfig) -> None:
    """Writes llama.cpp's form of a LoRA folder beside it, for `--lora FILE`. Raises ModelError where it has none."""
    config = plain_lora(folder)
    names, ranked = Names(backbone), load_file(folder / TENSORS)
    tensors: dict[str, Tensor] = {}
    for key, a_KI in ranked.items():
        if not key.endswith(".lora_A.weight"):
            if ".lora_B." not in key:
                raise ModelError(f"{key} has no place in a LoRA of llama.cpp, which holds those of linear maps.")
            continue
        layer = key.removeprefix(IN_FRONT).removesuffix(".lora_A.weight")
        b_OK, weight = ranked[key.replace("lora_A", "lora_B")], f"{layer}.weight"
        # llama.cpp multiplies by alpha / K, with one alpha for all layers: it is 1 there.
        factor = _scaling(config, layer, len(a_KI)) * len(a_KI)
        tensors[f"{names.of(weight)}.lora_a"] = a_KI
        tensors[f"{names.of(weight)}.lora_b"] = names.laid(weight, b_OK.float() * factor)
    about = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 1.0}
    write_tensors(folder / ADAPTER, names.architecture, about, tensors)


def _scaling(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """What PEFT multiplies B A by in a layer."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def control_vector(adapter: Path, backbone: PreTrainedConfig, file: Path) -> float:
    """Writes RED's shift as llama.cpp's control vector: `--control-vector-scaled FILE:S` is strength S. Returns the share of
    the shift, of its squared length over all blocks, that block 0 has and the file cannot hold; 0 where it is all there.

    Raises ModelError for an adapter that learned more than a shift of feed-forward outputs, and for a model whose blocks do not
    add those to the residual stream as they are.
    """
    config = _read(adapter)
    if config.get("peft_type") != "RED":
        raise ModelError(
            f"a control vector is added to the output of blocks, as RED's shift is; a {config.get('peft_type')} adapter is"
            " something else: export it as plain, lora or gguf."
        )
    if config.get("edit") != "shift":
        raise ModelError(
            f"a control vector holds no scale, and this adapter learned edit={config.get('edit')}; train with tuner.edit=shift,"
            " or export it as gguf, merged at each strength."
        )
    hint = architecture_of(backbone)  # refuses blocks that do something else with their feed-forward output
    shift_D: dict[int, Tensor] = {}
    for key, held in load_file(adapter / TENSORS).items():
        layer = key.removeprefix(IN_FRONT).partition(".red_edit")[0]
        if not re.fullmatch(RED_TARGETS[backbone.model_type], layer):
            raise ModelError(
                f"this adapter also shifts {layer}, whose output is not added to the residual stream as the output of a block"
                " is; export it as gguf."
            )
        number = re.search(r"\.(\d+)\.", layer)
        assert number is not None
        shift_D[int(number[1])] = held.float()
    first = shift_D.pop(0, torch.zeros(1))
    if not shift_D:
        raise ModelError("this adapter shifts block 0 alone, where llama.cpp has no control vector; export it as gguf.")
    about = {"controlvector.model_hint": hint, "controlvector.layer_count": len(shift_D)}
    write_tensors(file, "controlvector", about, {f"direction.{block}": each for block, each in sorted(shift_D.items())})
    whole = float(first.square().sum()) + sum(float(each.square().sum()) for each in shift_D.values())
    return float(first.square().sum()) / whole if whole else 0.0
