"""The PEFT tuner: finds RED's layers in a model and puts a `RedLayer` around each."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils.error import NoMatchingPeftModuleError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ModelError
from alignlab.tuners.red.config import RedConfig, red_targets
from alignlab.tuners.red.layer import RedLayer


class RedModel(BaseTuner):
    """RED as a PEFT method: `get_peft_model`, saving, loading, merging and several adapters come from peft."""

    prefix = "red_"
    tuner_layer_cls = RedLayer

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put the edit on every matching layer.

        Raises:
            ModelError: nothing matches; the sentence lists near names.
        """
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        except NoMatchingPeftModuleError as error:
            config = self.peft_config[adapter_name]
            assert isinstance(config, RedConfig)
            raise ModelError(_nothing_matched(config, model)) from error

    def _prepare_adapter_config(  # type: ignore[override]  # peft hands over the class that was registered
        self, peft_config: RedConfig, model_config: dict[str, Any]
    ) -> RedConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = red_targets(str(model_config.get("model_type")))
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: RedConfig, key: str) -> object:  # type: ignore[override]
        """peft's matching, plus `layers_to_transform` for patterns too, where peft ignores it without a word."""
        found = check_target_module_exists(peft_config, key)
        layers = peft_config.layers_to_transform
        if not found or layers is None or not isinstance(peft_config.target_modules, str):
            return found
        return _block_index(key, peft_config.layers_pattern) in ([layers] if isinstance(layers, int) else layers)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: RedConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, RedLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, (nn.Linear, Conv1D)):
            kind = type(target).__name__
            raise ModelError(f"RED edits the output of Linear and Conv1D layers; {current_key} is a {kind}.")
        layer = RedLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def _block_index(key: str, pattern: list[str] | str | None) -> int | None:
    """The index of the block in a module's name: the first number, or the one behind one of the named lists."""
    names = [r"[^.]+"] if not pattern else [pattern] if isinstance(pattern, str) else pattern
    found = re.search(rf"(?:^|\.)(?:{'|'.join(names)})\.(\d+)\.", key)
    return int(found.group(1)) if found else None


def _nothing_matched(config: RedConfig, model: nn.Module) -> str:
    """The sentence for targets that match no module: what was asked, and the names that look like it."""
    wanted = [config.target_modules] if isinstance(config.target_modules, str) else sorted(config.target_modules or ())
    layers = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    known = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in layers})
    near = [close for target in wanted for close in get_close_matches(target, known, n=3, cutoff=0.4)] or known[:8]
    return f"RED found no layer for target_modules {', '.join(wanted)}; nearest here: {', '.join(near)}."
