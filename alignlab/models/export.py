"""A tuned model as a plain transformers checkpoint: merged, written, read back, compared."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from alignlab.errors import ModelError
from alignlab.files import PART, alone, storage_error

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}
"""Largest logit difference by dtype, relative to the largest logit where that is above 1; half types round W itself."""

BIAS_OPTIONS = ("mlp_bias", "attention_bias")
"""The switches by which a transformers configuration gives biases to layers that usually have none."""


def export_plain(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    dtype: torch.dtype | None = None,
) -> float:
    """Write the merged model to `folder`, to load without alignlab or peft; return the largest logit difference.

    Merges the active adapter into a copy, at its present strength, then casts to `dtype` (None: as it is). The difference
    is between the tuned model and the checkpoint read back from disk, on a few token ids. A model without an adapter is
    written as it is. Either the whole folder appears or nothing does.

    Raises:
        ModelError: the folder is in use, the adapter does not merge, the architecture has no place for a merged bias,
            or the checkpoint answers differently.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} already holds files; export into a new folder.")
    tuned = copy.deepcopy(model).eval()
    batch = probe(tuned.config, tuned.device)
    expected = logits_of(tuned, batch)
    own_tolerance = TOLERANCE[tuned.dtype]
    plain = _merged(tuned)
    plain.to(dtype or plain.dtype)  # type: ignore[arg-type]  # transformers annotates the device only
    allowed = max(own_tolerance, TOLERANCE[plain.dtype]) * max(1.0, float(expected.abs().max()))
    _give_biases_a_place(plain)
    lock = folder.with_name(f".{folder.name}.lock")
    with alone(lock, f"waits for another process that writes {folder}", stays=False), whole_folder(folder) as scratch:
        plain.save_pretrained(scratch)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        difference = float((logits_of(_read_back(plain, scratch), batch) - expected).abs().max())
        # `not <=` so that a NaN is refused too.
        if not difference <= allowed:
            raise ModelError(f"the exported model differs from the tuned one by {difference:.2g} in its logits.")
    return difference


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """What is written into the folder that is given inside appears as `folder`, which may be there and empty; or, after an
    error, not at all."""
    scratch = folder.with_name(f".{folder.name}{PART}")
    shutil.rmtree(scratch, ignore_errors=True)  # a dead process had begun it
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if folder.exists():
            folder.rmdir()
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _merged(tuned: PeftModel | PreTrainedModel) -> PreTrainedModel:
    config = getattr(tuned, "active_peft_config", None)
    if config is None:
        return tuned
    merge = getattr(tuned.base_model, "merge_and_unload", None)
    if merge is None:
        raise ModelError(f"a {config.peft_type.value} adapter does not merge into the weights; keep it beside its backbone.")
    _put_trained_modules_in_place(tuned)
    try:
        plain: PreTrainedModel = merge()
    except (NotImplementedError, ValueError) as error:
        raise ModelError(f"this {config.peft_type.value} adapter does not merge into its backbone: {error}") from error
    return plain


def _put_trained_modules_in_place(tuned: nn.Module) -> None:
    """Whole modules that were trained beside the adapter, such as a classifier's head, take the place of what they were. peft
    does so itself for single layers only."""
    from peft.utils.other import ModulesToSaveWrapper

    wrapped = [(name, module) for name, module in tuned.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    for name, module in wrapped:
        parent, _, child = name.rpartition(".")
        setattr(tuned.get_submodule(parent), child, module.modules_to_save[module.active_adapters[0]])


def _give_biases_a_place(plain: PreTrainedModel) -> None:
    """Switch on the options that make room for new biases, and fill up the neighbours' biases with zeros.

    Without this a reload drops the merged shift with a mere log line, and the model answers differently.
    """
    held = set(plain.state_dict())
    homeless = held - _keys(type(plain), plain.config)
    for option in BIAS_OPTIONS:
        if getattr(plain.config, option, None) is not False:
            continue
        trial = copy.deepcopy(plain.config)
        setattr(trial, option, True)
        still_homeless = held - _keys(type(plain), trial)
        if len(still_homeless) < len(homeless):
            homeless = still_homeless
            setattr(plain.config, option, True)
    if homeless:
        raise ModelError(
            f"a plain {plain.config.model_type} model has no place for {min(homeless)}, which the merged shift needs; "
            "train with edit=scale, or another tuner that merges (lora), or keep the adapter beside its backbone."
        )
    for key in _keys(type(plain), plain.config) - held:
        layer = cast("nn.Linear", plain.get_submodule(key.removesuffix(".bias")))
        zeros = layer.weight.new_zeros(layer.out_features)
        layer.register_parameter("bias", nn.Parameter(zeros, requires_grad=False))


def _keys(kind: type[PreTrainedModel], config: PreTrainedConfig) -> set[str]:
    """The names of the tensors that a plain model of this configuration holds; no memory is used."""
    with torch.device("meta"):
        return set(kind(copy.deepcopy(config)).state_dict())


def _read_back(plain: PreTrainedModel, written: Path) -> PreTrainedModel:
    try:
        loaded: Any = type(plain).from_pretrained(written, dtype=plain.dtype, output_loading_info=True)
    except (OSError, RuntimeError) as error:
        first = str(error).partition("\n")[0]
        told = storage_error(error, written)
        raise told or ModelError(f"the exported checkpoint cannot be read back ({first}); export it again.") from error
    model, report = loaded
    lost = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if lost:
        raise ModelError(f"the exported checkpoint does not fit its own configuration: {', '.join(lost[:4])}.")
    back: PreTrainedModel = model.to(plain.device).eval()
    return back


def probe(config: PreTrainedConfig, device: torch.device) -> dict[str, Tensor]:
    """Two rows of 16 token ids, the same each time, without the low ids where the special tokens live."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = config.get_text_config().vocab_size
    ids = torch.randint(min(4, vocabulary - 1), vocabulary, (2, 16), generator=generator).to(device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**batch, "decoder_input_ids": ids[:, :8]} if config.is_encoder_decoder else batch


def logits_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What a model gives for `probe`, in float32."""
    with torch.no_grad():
        first: Tensor = model(**batch)[0]
    return first.float()
