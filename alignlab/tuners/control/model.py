"""The PEFT tuner: puts a control on the input embedding, on linear maps, or (a phrase) nowhere."""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import DUMMY_TARGET_MODULES, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

from alignlab.errors import ConfigError, ModelError
from alignlab.tuners.control.base_hash import refuse_other
from alignlab.tuners.control.config import ControlConfig
from alignlab.tuners.control.layer import ControlEmbedding, ControlLora


class NoPlaceholder(SuppressTokensLogitsProcessor):
    """A type of its own, since generate drops its `suppress_tokens` for a processor of the type that it would build."""


class ControlModel(BaseTuner):
    """Controls as a PEFT method: `get_peft_model`, saving, loading and several adapters come from peft."""

    prefix = "control_"
    tuner_layer_cls = (ControlEmbedding, ControlLora)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put the control in.

        Raises:
            ConfigError: a placeholder beyond the vocabulary, or targets that match nothing.
            ModelError: the control was tuned with other weights than the model has.
        """
        config = self.peft_config[adapter_name]
        assert isinstance(config, ControlConfig)
        refuse_other(model, config.base_hash)
        rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        beyond = [placeholder for placeholder in config.placeholders if not 0 <= placeholder < rows]
        if beyond:
            raise ConfigError(f"placeholder {beyond[0]} lies beyond the vocabulary of {rows}; choose an unused id below that.")
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        except NoMatchingPeftModuleError as error:
            raise ConfigError(f"a LoRA control found no layer for its targets: {config.target_modules}.") from error

    def generate(self, *inputs: Any, **given: Any) -> Any:
        """The model's own, which says no placeholder: a model would read it as a control. The caller's generation_config stays
        as it is."""
        placeholders = sorted({id for config in self.peft_config.values() if config.embeds for id in config.placeholders})
        if placeholders:
            mine = [*(given.get("logits_processor") or ()), NoPlaceholder(placeholders)]
            given["logits_processor"] = LogitsProcessorList(mine)
        return self.model.generate(*inputs, **given)  # type: ignore[operator]

    def _prepare_adapter_config(self, peft_config: ControlConfig, model_config: dict[str, Any]) -> ControlConfig:  # type: ignore[override]
        if peft_config.form == "text":
            peft_config.target_modules = DUMMY_TARGET_MODULES
        elif peft_config.embeds:
            names = {id(module): name for name, module in self.model.named_modules()}
            peft_config.target_modules = f"(.*\\.)?{re.escape(names[id(self._embedding())])}"
        elif peft_config.target_modules is None:
            kind = str(model_config.get("model_type"))
            known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
            if kind not in known:
                raise ModelError(
                    f"where a LoRA sits in models of type {kind!r} is not known; name linear maps in control.targets."
                )
            peft_config.target_modules = known[kind]
        return peft_config

    def _embedding(self) -> nn.Module:
        """The input embedding, without what an earlier adapter put around it."""
        embedding: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        return embedding

    def _check_tied_modules(self, model: nn.Module, peft_config: ControlConfig) -> None:  # type: ignore[override]
        """peft warns that a tied head will not follow; it must not, and nothing is merged into the embedding."""

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: ControlConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, (ControlEmbedding, ControlLora)):
            target.update_layer(adapter_name, peft_config)
            return
        layer: ControlEmbedding | ControlLora
        if peft_config.embeds:
            assert isinstance(target, nn.Embedding)
            layer = ControlEmbedding(target, adapter_name, peft_config)
        elif target is self.model.get_output_embeddings():  # type: ignore[operator]
            raise ConfigError(
                f"control.targets names {current_key}, the head, which sees single tokens and no rows; leave it out."
            )
        else:
            layer = ControlLora(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        setattr(parent, target_name, layer)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """What is unloaded was on its devices all along."""
        setattr(parent, child_name, new_module)
