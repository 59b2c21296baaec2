"""CLM (arXiv 2503.04346) as a PEFT method and as a tuner: the first block is found, new ones are put in front, and a strength
mixes the two streams at the logits."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.strength import Strength, WeightedPass
from alignlab.tuners.clm.layer import HALF, ClmBlocks, ClmConfig, ClmLayer, blocks_at, number_as, written
from alignlab.tuners.config import ClmTunerConfig
from alignlab.tuners.peft_tuner import LayerModel, PeftTuner
from alignlab.tuners.targets import BLOCK_LAYOUTS, POST_NORM, BlockLayout, block_names, matched, near
from alignlab.tuners.tuner import mixed_logits

log = logging.getLogger(__name__)

COPIED = (torch.float32, torch.float64, *HALF)
"""Types of weights that can be copied, zeroed and trained."""

BY_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Keys of a config that hold an entry per layer."""

USUAL = (-0.5, 2.0)
"""Strengths that the papers use on dialogue; beyond them texts often break (CLM, figure 3; InRa, table 9)."""


def block_layout(config: Mapping[str, Any]) -> BlockLayout:
    """The layout for a model's configuration. Raises ModelError, with what to do, where no block can be put in front."""
    kind = str(config.get("model_type"))
    if config.get("is_encoder_decoder"):
        raise ModelError(f"CLM puts a block in front of a decoder; {kind} is an encoder-decoder model. Take a causal model.")
    if kind in POST_NORM:
        raise ModelError(
            f"CLM needs a pre-norm residual stream; a {kind} model normalises h + f(h), so no added block starts as the"
            f" identity. Take a causal model such as llama, qwen3 or gpt2."
        )
    if kind not in BLOCK_LAYOUTS:
        raise ModelError(
            f"CLM knows no block layout for models of type {kind!r} (known: {', '.join(sorted(BLOCK_LAYOUTS))}); if its"
            " blocks are pre-norm, give tuner.writes, the modules of the first block that write into the residual stream, or"
            " ClmConfig(target_modules=<pattern of the first block>, writes=[...])."
        )
    return BLOCK_LAYOUTS[kind]


class _Reached(Exception):  # noqa: N818  # no error: it ends a pass early
    """The block has run; what follows is not needed."""


@torch.no_grad()
def refuse_other_than_identity(model: nn.Module, name: str, writes: list[str]) -> None:
    """Raises ModelError where block `name`, with all that it `writes` at zero, does not return its input bit for bit.

    A few ids run up to the block, whose weights are put back; a model without weights (meta device) is not looked at.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    block = model.get_submodule(name)
    block = getattr(block, "base_layer", block)  # another adapter may stand in front
    zeroed = written(block, writes)
    before = [parameter.data for parameter in zeroed]
    training = {module: module.training for module in model.modules()}
    kept: list[bool] = []

    def compare(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor | tuple[Tensor, ...]) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        kept.append(torch.equal(output if isinstance(output, Tensor) else output[0], given))
        raise _Reached

    hook = block.register_forward_hook(compare, with_kwargs=True)
    try:
        model.eval()
        for parameter in zeroed:
            parameter.data = torch.zeros_like(parameter.data)
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        ids_RT = torch.arange(8, device=embedding.weight.device).reshape(2, 4) % len(embedding.weight)
        model(input_ids=ids_RT, use_cache=False)
    except _Reached:
        pass
    finally:
        hook.remove()
        for parameter, data in zip(zeroed, before, strict=True):
            parameter.data = data
        for module, was in training.items():
            module.training = was
    if kept != [True]:
        raise ModelError(
            f"{name} with {', '.join(writes)} at zero does not return its input, so no added block starts as the identity: its"
            " residual stream is normalised or scaled, or it writes through other modules, which `writes` must name too."
        )


class ClmModel(LayerModel):
    """CLM as a PEFT method: `get_peft_model`, saving, loading and several adapters come from PEFT."""

    prefix = "clm_"
    tuner_layer_cls = ClmLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *rest: Any, **more: Any) -> None:
        """Put the new blocks in front of the first one.

        Raises:
            ModelError: the model is no pre-norm decoder, its layout is not known, its weights are quantised, or its first
                block without what it is said to write is not the identity.
        """
        config = self.peft_config[adapter_name]
        assert isinstance(config, ClmConfig)
        if config.target_modules is None:
            layout = block_layout(self.get_model_config(model))
            config.target_modules, config.writes = layout.first, list(layout.writes)
        if self.get_model_config(model).get("quantization_config"):
            raise ModelError("CLM trains a copy of the first block, which a quantised model cannot give; load it in bfloat16.")
        pattern = config.target_modules
        found = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise ModelError(f"CLM's target_modules={pattern!r} names {len(found)} modules; it must name the first block.")
        _refuse_uncopyable(model.get_submodule(found[0]), found[0], config)
        if config.start == "identity":
            refuse_other_than_identity(model, found[0], config.writes or [])
        super().inject_adapter(model, adapter_name, *rest, **more)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The plain model with the new blocks as its first layers, in the backbone's type: strength 1.

        Raises:
            ControlError: the blocks are set to something else than 1.
            ModelError: with `safe_merge`, a weight that is not finite.
        """
        holder, layer = self._place()
        if layer.setting != 1.0 or layer.disable_adapters:
            raise ControlError("a plain model with more layers is the model at strength 1; set that first.")
        names = [name for name in adapter_names or layer.active_adapters if name in layer.clm_blocks]
        kind = next(layer.base_layer.parameters()).dtype
        added = [block for name in names for block in _blocks(layer, name)]
        if safe_merge and not all(bool(p.isfinite().all()) for block in added for p in block.parameters()):
            raise ModelError(f"the blocks of {', '.join(names)} hold weights that are not finite; the adapter is broken.")
        others = list(holder)[1:]
        plain = nn.ModuleList([*(block.to(kind).requires_grad_(False) for block in added), layer.base_layer, *others])
        for index, block in enumerate(plain):
            number_as(block, index)
        self._set_layers(holder, plain)
        _describe(self.model.config, len(added))
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """A parameter's name in a file, where no adapter is named. PEFT looks for the adapter's name near the end; ours
        precedes the block's."""
        front = f"{cls.prefix}blocks."
        if front not in key:
            removed: str = super()._remove_adapter_name_from_key(key, adapter_name)
            return removed
        return key.replace(f"{front}{adapter_name}.", front, 1)

    def _place(self) -> tuple[nn.ModuleList, ClmLayer]:
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) and isinstance(module[0], ClmLayer):
                return module, module[0]
        raise ModelError("this model carries no CLM block any more.")

    def _set_layers(self, before: nn.ModuleList, after: nn.ModuleList) -> None:
        for module in self.model.modules():
            for name, child in module.named_children():
                if child is before:
                    setattr(module, name, after)
                    return

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """A block has no weight of its own for peft to look at; the copies are on its devices already."""
        setattr(parent, child_name, new_module)

    def _prepare_adapter_config(self, peft_config: ClmConfig, model_config: dict[str, Any]) -> ClmConfig:  # type: ignore[override]
        return peft_config

    def around(self, target: nn.Module, parent: nn.Module, name: str, adapter_name: str, config: PeftConfig) -> nn.Module:
        """The first block with the new ones in front; it has to know how many blocks follow."""
        assert isinstance(parent, nn.ModuleList)
        assert isinstance(config, ClmConfig)
        return ClmLayer(target, len(parent), adapter_name, config)


def _blocks(layer: ClmLayer, name: str) -> list[nn.Module]:
    blocks = layer.clm_blocks[name]
    assert isinstance(blocks, ClmBlocks)
    return list(blocks.blocks)


def _describe(config: Any, added: int) -> None:
    """Tells a model's config that it has more layers, in front."""
    config.num_hidden_layers += added
    for key in BY_LAYER:
        values = getattr(config, key, None)
        if values is not None:
            setattr(config, key, [values[0]] * added + list(values))
    if getattr(config, "first_k_dense_replace", 0):
        config.first_k_dense_replace += added


def _refuse_uncopyable(block: nn.Module, name: str, config: ClmConfig) -> None:
    """Raises ModelError for weights that cannot be copied and trained, and for modules that the block does not have."""
    writes = config.writes or []
    inside = block.base_layer if isinstance(block, ClmLayer) else block
    modules, parameters = dict(inside.named_modules()), dict(inside.named_parameters())
    lost = [write for write in writes if write not in modules and write not in parameters]
    if lost:
        raise ModelError(f"{name} has no module {', '.join(lost)}; `writes` names what it adds to the residual stream.")
    whole = [write for write in writes if write in parameters]
    if whole and config.start == "random":
        raise ModelError(f"start='random' draws linear maps anew, and {name}.{whole[0]} is none; take start='identity'.")
    odd = sorted({str(tensor.dtype) for tensor in inside.parameters() if tensor.dtype not in COPIED})
    bare = [write for write in writes if write in modules and not list(modules[write].parameters())]
    if odd or bare:
        held = f"weights of type {', '.join(odd)}" if odd else f"no plain weights in {', '.join(bare)}"
        raise ModelError(
            f"CLM trains a copy of {name}, which holds {held} (quantised); load the backbone in bfloat16 or float32."
        )


class ClmTuner(PeftTuner):
    """z = s z_aligned + (1 - s) z_plain (paper, section 4.3), or with `merge` embeddings one pass with h + s (Phi(h) - h)."""

    adds_blocks = True
    _warned = False

    def _find(self) -> None:
        super()._find()
        self.starts_as_base = self.module.active_peft_config.start == "identity"

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """Both streams, or one of them at exactly 0 and 1; a single pass where the embeddings are merged."""
        self._warn_beyond(strength)
        config = self.module.active_peft_config
        return super().passes(strength) if config.merge == "embeddings" else mixed_logits(strength)

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """Rows at 1 go through the new blocks, rows at 0 past them."""
        return blocks_at(self.layers, setting)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Without the blocks, which afterwards are copies of the first block as it is then."""
        with self.off():
            yield
        for layer in self.layers:
            layer.follow_base()

    def _warn_beyond(self, strength: Strength) -> None:
        given = strength.tolist() if isinstance(strength, Tensor) else [strength]
        beyond = [value for value in given if not USUAL[0] <= value <= USUAL[1]]
        if beyond and not self._warned:
            self._warned = True
            log.warning("strength %g lies outside %g to %g, where texts often break down", beyond[0], *USUAL)


def build(config: ClmTunerConfig, model: PreTrainedModel) -> ClmTuner:
    """Adds the blocks, in front of the first one that is named or found.

    Raises ConfigError for names that the model does not have, ModelError for a model that no block can be put in front of.
    """
    first = _first_block(config, model)
    return ClmTuner(
        model,
        ClmConfig(
            blocks=config.blocks,
            start=config.start,
            merge=config.merge,
            target_modules=None if first is None else rf"(.*\.)?{re.escape(first)}",
            writes=config.writes,
        ),
    )


def _first_block(config: ClmTunerConfig, model: PreTrainedModel) -> str | None:
    """The name of the block that the config describes; None leaves it to the table of layouts."""
    if config.writes is None:
        return None
    if config.targets is not None:
        found = matched(model, config.targets, "tuner.targets", (nn.Module,))
        if len(found) != 1:
            raise ConfigError(f"tuner.targets={config.targets} names {', '.join(found[:3])}, ...; it must name one block.")
        first = found[0]
    else:
        blocks = block_names(model)
        if not blocks:
            raise ConfigError("no list of like blocks is found in this model; name the first one in tuner.targets.")
        first = blocks[0]
    block = model.get_submodule(first)
    inside = [name for name, _ in (*block.named_modules(), *block.named_parameters()) if name]
    for write in config.writes:
        if write not in inside:
            raise ConfigError(f"tuner.writes: {first} has no {write!r}; nearest here: {near(write, inside)}.")
    return first
