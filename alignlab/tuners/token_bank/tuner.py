"""TPT's token bank (2023.findings-emnlp.584) as a PEFT method and as a tuner: it puts placeholders in front of the encoder's
text, and has a bank and a task prompt as parts that stages train."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft.utils import load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ControlError, ModelError
from alignlab.models.strength import Inserted, Prefix, Strength, WeightedPass
from alignlab.tuners.config import TokenBankTunerConfig
from alignlab.tuners.peft_tuner import PeftTuner, refuse_other, temporarily, weights_hash
from alignlab.tuners.placeholders import PlaceholderModel, place_of
from alignlab.tuners.token_bank.layer import TASK, TokenBank, TokenBankConfig, TokenBankEmbedding


class TokenBankModel(PlaceholderModel):
    """Token banks as a PEFT method: `get_peft_model`, saving, loading and several adapters come from PEFT."""

    prefix = "tpt_"
    tuner_layer_cls = TokenBankEmbedding

    def inject_adapter(self, model: nn.Module, adapter_name: str, *rest: Any, **more: Any) -> None:
        """Put the bank in. Raises ModelError for a model that has no encoder, and for other weights than it was trained on."""
        config = self.peft_config[adapter_name]
        assert isinstance(config, TokenBankConfig)
        refuse_other(model, config.base_hash, "bank")
        super().inject_adapter(model, adapter_name, *rest, **more)
        if not config.masked:
            _unmask(cast("PreTrainedModel", model), config)

    def _prepare_adapter_config(self, peft_config: TokenBankConfig, model_config: dict[str, Any]) -> TokenBankConfig:  # type: ignore[override]
        model = cast("PreTrainedModel", self.model)
        if not model.config.is_encoder_decoder:
            raise ModelError(
                f"a token bank stands in front of what an encoder reads, and a {type(model).__name__} has no encoder beside its"
                " decoder; take an encoder-decoder model, such as model=t5_base."
            )
        rows = int(cast("nn.Embedding", model.get_input_embeddings()).num_embeddings)
        peft_config.placeholders = peft_config.placeholders or [rows - 2, rows - 1]
        peft_config.pad = int(model.config.pad_token_id or 0)
        peft_config.target_modules = place_of(model, model.get_encoder().get_input_embeddings())
        return peft_config

    def _check_merge_allowed(self) -> None:
        """Raises ModelError: it never is."""
        raise ModelError(TokenBankEmbedding.no_merge)


def _unmask(model: PreTrainedModel, config: TokenBankConfig) -> None:
    """Padding is read like text from now on, as in the released code, while the adapter is on."""
    encoder = model.get_encoder()
    layer = encoder.get_input_embeddings()
    encoder.register_forward_pre_hook(partial(_read_padding, layer, config), with_kwargs=True)
    model.register_forward_pre_hook(partial(_without_mask, layer), with_kwargs=True)


def _without_mask(layer: TokenBankEmbedding, _module: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, Any]:
    return given, named if layer.disable_adapters else {**named, "attention_mask": None}


def _read_padding(
    layer: TokenBankEmbedding, config: TokenBankConfig, _module: nn.Module, given: Any, named: dict[str, Any]
) -> tuple[Any, Any]:
    ids_RS, mask_RS = named.get("input_ids"), named.get("attention_mask")
    if layer.disable_adapters or ids_RS is None:
        return given, named
    if mask_RS is not None:
        ids_RS = ids_RS.where(mask_RS.bool(), config.pad)
    return given, {**named, "input_ids": padded(ids_RS, config, sum(_inserted(layer, config))), "attention_mask": None}


def _inserted(layer: TokenBankEmbedding, config: TokenBankConfig) -> tuple[int, int]:
    """Vectors of the bank and of the task prompt in a text."""
    table = next(table for table in layer.tables.values() if cast("TokenBank", table).config is config)
    return cast("TokenBank", table).retrieved, cast("TokenBank", table).length


def padded(ids_RS: Tensor, config: TokenBankConfig, beside: int) -> Tensor:
    """The ids with padding up to the length of a text, where one is set, and `beside` more."""
    missing = 0 if config.padded_to is None else config.padded_to + beside - ids_RS.shape[1]
    return nn.functional.pad(ids_RS, (0, max(0, missing)), value=config.pad)


class TokenBankTuner(PeftTuner):
    """A bank and a task prompt in front of the encoder's text. It has no strength but 1."""

    per_row = False
    starts_as_base = False

    def _find(self) -> None:
        super()._find()
        config = self.module.active_peft_config
        assert isinstance(config, TokenBankConfig)
        self.config = config
        (self.layer,) = (layer for layer in self.layers if isinstance(layer, TokenBankEmbedding))
        self.table = cast("TokenBank", self.layer.tables[self.module.active_adapter])
        taken = (self.config.retrieved if self.config.bank_parts else 0) + self.config.length
        self.inserted = Inserted(taken, tuple(self.config.placeholders))
        self.default_passes = self.passes(1.0)

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """`bank`, or `prompt0` and further where prompts are taken whole; and `task`."""
        return self.table.parts()

    def made_of(self, parts: Collection[str]) -> None:
        """The others are no longer put into texts, nor saved; no names stand for all parts."""
        self.table.present = tuple(part for part in self.config.parts if part in parts or not parts)
        self.default_passes = self.passes(1.0)

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """One pass, with placeholders in front of the text. Raises ControlError for any strength but 1."""
        if not bool((torch.as_tensor(strength) == 1.0).all()):
            shown = strength.tolist() if isinstance(strength, Tensor) else f"{strength:g}"
            raise ControlError(
                f"strength {shown} is not defined for a token bank, which stands in the text or does not; take 1"
                " (control=full_strength), or the backbone by itself."
            )
        bank, task = self.config.placeholders
        return (WeightedPass(1.0, 1.0, Prefix((bank,) * self.table.retrieved + (task,) * self.table.length)),)

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """Nothing is set: the vectors stand in the text."""
        del setting
        return nullcontext()

    @torch.no_grad()
    def selected(self, ids_RS: Tensor) -> Tensor:
        """The numbers of the vectors that are chosen for each text, R,K; ids with padding behind them, without placeholders."""
        ids_RS = ids_RS if self.config.masked else padded(ids_RS, self.config, 0)
        embedded_RSD = self.layer.base_layer(ids_RS)
        return self.table.chosen(ids_RS, embedded_RSD, torch.ones_like(ids_RS, dtype=torch.bool))[0]

    def save(self, folder: Path) -> None:
        """The parts that take part, and which weights they were trained on."""
        self.config.base_hash = weights_hash(self.module)
        with self.table.only_present(), temporarily("parts", list(self.table.present), [self.config]):
            super().save(folder)

    def load(self, folder: Path) -> None:
        """Reads the parts that take part back. Raises ModelError for a bank of another size, width or backbone."""
        self._refuse_other(folder, self.table.present)
        with self.table.only_present():
            super().load(folder)

    def start_from(self, folder: Path, parts: Sequence[str]) -> None:
        """These parts become those of a saved adapter; on the meta device they are only looked at. Raises ModelError as `load`,
        and for an adapter that lacks one."""
        tensors = self._refuse_other(folder, parts)
        for part in parts:
            for name, parameter in zip(self.table.names(part), self.parts()[part], strict=True):
                if not parameter.is_meta:
                    parameter.data = tensors[name].to(parameter.device, parameter.dtype)

    def _refuse_other(self, folder: Path, parts: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of an adapter's folder by their part. Raises ModelError where they are not those of this one."""
        written = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        refuse_other(self.module, written.get("base_hash"), "bank")
        tensors = {name.rpartition(".")[2]: tensor for name, tensor in load_peft_weights(str(folder), device="cpu").items()}
        for part in parts:
            for name in self.table.names(part):
                if name not in tensors:
                    held = ", ".join(sorted(tensors))
                    raise ModelError(f"{folder} holds {held} and no {name}; give the adapter of another stage.")
            found, own = tuple(tensors[part].shape), tuple(self.parts()[part][0].shape)
            if found != own:
                raise ModelError(
                    f"{folder} holds a {part} of {found[0]} vectors of width {found[1]}, and this one has {own[0]} of width"
                    f" {own[1]}; give one that was saved for this model and these sizes."
                )
        return tensors


def build(config: TokenBankTunerConfig, model: PreTrainedModel) -> TokenBankTuner:
    """Puts a token bank in, at its start. Raises ConfigError for ids outside the vocabulary, ModelError as `start_from`."""
    made = TokenBankConfig(
        tokens=config.tokens,
        retrieved=config.retrieved,
        length=config.length,
        retrieval=config.retrieval,
        masked=config.masked,
        padded_to=config.padded_to,
        draw_seed=config.draw_seed,
        bank_ids=list(config.bank_ids),
        prompt_ids=list(config.prompt_ids),
        placeholders=list(config.placeholders or ()),
    )
    tuner = TokenBankTuner(model, made)
    if config.bank_from is not None:
        tuner.start_from(Path(config.bank_from), made.bank_parts)
    if config.prompt_from is not None:
        tuner.start_from(Path(config.prompt_from), [TASK])
    return tuner
