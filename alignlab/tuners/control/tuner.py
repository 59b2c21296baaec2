"""Controls (MEET, arXiv 2310.00819) as a PEFT method and as a tuner; the hash of their base, and their plain export."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.error import NoMatchingPeftModuleError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.export import TOLERANCE, export_plain
from alignlab.models.policy import Policy
from alignlab.models.strength import WITHOUT, Strength, WeightedPass
from alignlab.records import NO_CLASS
from alignlab.tuners.config import ControlTunerConfig
from alignlab.tuners.control.config import ControlConfig
from alignlab.tuners.control.layer import ControlEmbedding, ControlLora
from alignlab.tuners.peft_tuner import PeftTuner, both, refuse_other, temporarily, weights_hash
from alignlab.tuners.placeholders import PlaceholderModel, place_of
from alignlab.tuners.targets import matched

VECTORS, ABOUT = "prefix.safetensors", "prefix.json"
HOW = (
    "prefix.safetensors holds the vectors of one class, tokens x width. Embed the prompt with the model's input embedding, put"
    " the vectors behind its first `behind` tokens, and call the model, or generate, with `inputs_embeds`."
)


class ControlModel(PlaceholderModel):
    """Controls as a PEFT method: `get_peft_model`, saving, loading and several adapters come from PEFT."""

    prefix = "control_"
    tuner_layer_cls = (ControlEmbedding, ControlLora)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *rest: Any, **more: Any) -> None:
        """Put the control in.

        Raises:
            ConfigError: a placeholder beyond the vocabulary, or targets that match nothing.
            ModelError: the control was tuned with other weights than the model has.
        """
        config = self.peft_config[adapter_name]
        assert isinstance(config, ControlConfig)
        refuse_other(model, config.base_hash)
        try:
            super().inject_adapter(model, adapter_name, *rest, **more)
        except NoMatchingPeftModuleError as error:
            raise ConfigError(f"a LoRA control found no layer for its targets: {config.target_modules}.") from error

    def reserved(self, config: PeftConfig) -> Sequence[int]:
        """None of a phrase, whose ids are words."""
        assert isinstance(config, ControlConfig)
        return config.controls.reserved

    def _prepare_adapter_config(self, peft_config: ControlConfig, model_config: dict[str, Any]) -> ControlConfig:  # type: ignore[override]
        if peft_config.form == "text":
            peft_config.target_modules = DUMMY_TARGET_MODULES
        elif peft_config.embeds:
            peft_config.target_modules = place_of(self.model, self.model.get_input_embeddings())  # type: ignore[operator]
        elif peft_config.target_modules is None:
            kind = str(model_config.get("model_type"))
            known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
            if kind not in known:
                raise ModelError(
                    f"where a LoRA sits in models of type {kind!r} is not known; name linear maps in control.targets."
                )
            peft_config.target_modules = known[kind]
        return peft_config

    def around(self, target: nn.Module, parent: nn.Module, name: str, adapter_name: str, config: PeftConfig) -> nn.Module:
        """Raises ConfigError for a LoRA on the head."""
        assert isinstance(config, ControlConfig)
        if config.embeds:
            assert isinstance(target, nn.Embedding)
            return ControlEmbedding(target, adapter_name, config)
        if target is self.model.get_output_embeddings():  # type: ignore[operator]
            raise ConfigError(f"control.targets names {name}, the head, which sees single tokens and no rows; leave it out.")
        return ControlLora(target, adapter_name, config)


class ControlTuner(PeftTuner):
    """A class per row; for two classes z = s z_first + (1 - s) z_second, any real s (our choice; MEET has no strength)."""

    starts_as_base = False
    default_passes = (WeightedPass(1.0, WITHOUT),)

    def _find(self) -> None:
        super()._find()
        config = self.module.active_peft_config
        assert isinstance(config, ControlConfig)
        self.config = config
        self.controls = config.controls
        self.inserted = self.controls.inserted

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """Both classes, or one of them at exactly 0 and 1."""
        assert self.controls is not None
        return self.controls.at_strength(strength)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """The class of all rows, or of each; forms that stand in the text need no setting. What was trained beside the control
        is there under every class, and not without any.

        Raises ControlError for rows with and without a class where something was.
        """
        if not self.beside.names:
            return self.edited(setting)
        return both(self.edited(setting), self.beside.at(float(_classed(setting, self.one_strength))))

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """The class of each row of a LoRA; the other forms are in the text."""
        return temporarily("setting", setting, self.layers) if self.config.form == "lora" else nullcontext()

    def save(self, folder: Path) -> None:
        """Beside the small tensors, which weights they were tuned with."""
        self.config.base_hash = weights_hash(self.module)
        super().save(folder)

    def load(self, folder: Path) -> None:
        """Reads the tensors back. Raises ModelError for other classes, and for other weights than they were tuned with."""
        written = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if written.get("classes") != self.config.classes:
            raise ModelError(f"{folder} holds a control of {written.get('classes')}, and this one has {self.config.classes}.")
        refuse_other(self.module, written.get("base_hash"))
        super().load(folder)


def _classed(setting: Strength, why: str) -> bool:
    """Whether the rows have a class. Raises ControlError where only some of them have."""
    if not isinstance(setting, Tensor):
        return setting != WITHOUT
    classed = setting != WITHOUT
    if bool(classed.any()) and not bool(classed.all()):
        raise ControlError(f"rows with and without a class cannot share a pass here: {why}.")
    return bool(classed.all())


def build(_config: ControlTunerConfig, model: PreTrainedModel, control: ControlConfig) -> ControlTuner:
    """Puts the chosen control in, at its start. Raises ConfigError for a target that names no layer."""
    if control.form == "lora" and control.target_modules:
        matched(model, control.target_modules, "control.targets")
    return ControlTuner(model, control)


def export_class(policy: Policy, name: str, folder: Path, dtype: torch.dtype) -> float:
    """Writes a class as a checkpoint that answers like the tuned model under it; returns the largest difference of logits.

    A LoRA is merged. Vectors and phrases stand in the text, so they are written beside the model, as `prefix.safetensors` and
    `prefix.json`. `none` is the model alone. Raises ControlError for an unknown class, ModelError as `export_plain` does and
    where the checkpoint with its prefix answers differently.
    """
    tuner = policy.tuner
    assert isinstance(tuner, ControlTuner)
    assert tuner.controls is not None
    number = WITHOUT if name == NO_CLASS else float(tuner.controls.number(name))
    tokenizer = policy.backbone.codec.tokenizer
    if tuner.config.form == "lora" and name != NO_CLASS:
        with tuner.at(number):
            return export_plain(tuner.module, tokenizer, folder, dtype)
    plain = copy.deepcopy(tuner.module).base_model.unload()
    difference = export_plain(plain, tokenizer, folder, dtype)
    if name == NO_CLASS:
        return difference
    prefix = tuner.controls.prefixes[int(number)]
    with torch.no_grad():
        vectors_TD = policy.model.get_input_embeddings()(torch.tensor([prefix.ids]))[0]  # type: ignore[operator]
    save_file({"prefix": vectors_TD.to(dtype).contiguous()}, folder / VECTORS)
    about = {"class": name, "behind": prefix.behind, "tokens": len(prefix.ids), "how": HOW}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return max(difference, _compared(policy, name, folder, dtype))


@torch.no_grad()
def _compared(policy: Policy, name: str, folder: Path, dtype: torch.dtype) -> float:
    """The largest difference of logits between the tuned model and what was written, on one prompt."""
    ids = list(policy.backbone.codec.prompts(["Once upon a time"])[0])
    assert policy.tuner.controls is not None
    prefix = policy.tuner.controls.prefixes[policy.tuner.controls.number(name)]
    tuned: Any = policy.model
    expected = tuned(torch.tensor([[*ids[: prefix.behind], *prefix.ids, *ids[prefix.behind :]]])).logits.float()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    embedded_1TD: Tensor = plain.get_input_embeddings()(torch.tensor([ids]))
    vectors_1TD = load_file(folder / VECTORS)["prefix"][None]
    whole = torch.cat([embedded_1TD[:, : prefix.behind], vectors_1TD, embedded_1TD[:, prefix.behind :]], dim=1)
    difference = float((plain(inputs_embeds=whole).logits.float() - expected).abs().max())
    if not difference <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max())):
        shutil.rmtree(folder)
        raise ModelError(f"the exported model with its prefix differs from the tuned one by {difference:.2g} in its logits.")
    return difference
