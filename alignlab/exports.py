"""A finished run for other engines: a plain checkpoint, LoRA folders, GGUF, a control vector; each read back and compared."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer

from alignlab.card import Adapter, write_export_card
from alignlab.errors import ControlError, ModelError
from alignlab.files import alone
from alignlab.finished import load, result_of
from alignlab.models.anatomy import block_list
from alignlab.models.export import TOLERANCE, export_plain, logits_of, probe, whole_folder
from alignlab.models.gguf import architecture_of, need_gguf, write_model
from alignlab.models.policy import Policy
from alignlab.models.strength import checked_strengths
from alignlab.records import NO_CLASS
from alignlab.tuners.control.tuner import VECTORS, export_class
from alignlab.tuners.engines import class_lora, control_vector, lora_gguf, plain_lora, scaled_lora

MODEL, VECTOR = "model.gguf", "control-vector.gguf"
"""Files that llama.cpp loads."""
CAST = ("plain", "gguf")
"""Forms that are written in a dtype of one's choice."""
MERGED = "What was learned is merged in, at this point: nothing sets another one."
USE = {
    "plain": ("transformers", f'`{{auto}}.from_pretrained("FOLDER OF THIS CARD")` loads it, without alignlab. {MERGED}'),
    "lora": ("peft", f'`PeftModel.from_pretrained(base, "FOLDER OF THIS CARD")` loads it, without alignlab. {MERGED}'),
    "gguf": ("gguf", f"`llama-cli -m {MODEL} -p PROMPT` runs it. {MERGED}"),
    "control-vector": ("gguf", f"`llama-cli -m BACKBONE.gguf --control-vector-scaled {VECTOR}:1.5 -p PROMPT` is strength 1.5."),
}
"""Of each form, the library that loads it, and how."""


@dataclass(frozen=True)
class Exported:
    """What was written. `difference`: the largest one of logits between the run and what was written, read back; `note`: what
    is not in it, or how it is used; may be empty. `written`: the form, the strength or class, and the dtype."""

    place: Path
    difference: float
    note: str = ""
    written: str = ""


def export(
    run: Path,
    to: Path,
    form: str = "plain",
    dtype: str = "float32",
    control: str | None = None,
    strengths: Sequence[float] = (),
    *,
    trust_remote_code: bool = False,
) -> list[Exported]:
    """Writes a run in one of `FORMS`: into `to` at one strength (1 if none is named), into `to`/strength-S at each of several.

    Raises ModelError where the run has no such form (see its tuner's card), and ControlError for a strength that it has no
    single pass at, and for a class that is missing, unknown, or asked of a run without any.
    """
    asked = list(dict.fromkeys(checked_strengths(strengths))) if strengths else [1.0]
    if form == "control-vector" and strengths:
        raise ControlError(
            "a control vector has its strength where it is used (--control-vector-scaled FILE:S); leave --strength out."
        )
    places = [to if len(asked) == 1 else to / f"strength-{strength:g}" for strength in asked]
    for place in places:
        _refuse_used(place)
    policy = load(run, device="cpu", trust_remote_code=trust_remote_code)
    classes = policy.tuner.controls
    if classes is not None:
        if control is None:
            raise ControlError(f"{run} has classes; choose one with --control {', '.join(classes.names)} or {NO_CLASS}.")
        if strengths or form == "control-vector":
            raise ControlError(f"{run} has classes and no strength; export it as plain, lora or gguf, without --strength.")
    elif control is not None:
        raise ControlError(f"{run} has no classes; leave --control out.")
    made = []
    with ExitStack() as whole:
        scratches = [whole.enter_context(_alone_in(place)) for place in places]
        written = FORMS[form](_Wanted(run, policy, getattr(torch, dtype), control, list(zip(asked, scratches))))
        for strength, place, scratch, each in zip(asked, places, scratches, written, strict=True):
            what = f"{form}, {_point(form, control, strength)}, {dtype if form in CAST else 'float32'}"
            write_export_card(scratch, Adapter(result_of(run), run), what, *USE[form])
            note = each.note.replace(str(scratch), str(place))
            made.append(Exported(place / each.place.relative_to(scratch), each.difference, note, what))
    return made


@contextmanager
def _alone_in(place: Path) -> Iterator[Path]:
    """A folder to write into, which appears as `place` when it is whole; one process at a time."""
    lock = place.with_name(f".{place.name}.lock")
    with alone(lock, f"waits for another process that writes {place}", stays=False):
        _refuse_used(place)
        with whole_folder(place) as scratch:
            yield scratch


def _refuse_used(place: Path) -> None:
    if place.exists() and any(place.iterdir()):
        raise ModelError(f"{place} already holds files; export into a new folder.")


def _point(form: str, control: str | None, strength: float) -> str:
    if form == "control-vector":
        return "any strength"
    return f"strength {strength:g}" if control is None else f"class {control}"


@dataclass(frozen=True)
class _Wanted:
    """`places`: each strength, and the folder that it goes to."""

    run: Path
    policy: Policy
    dtype: torch.dtype
    control: str | None
    places: Sequence[tuple[float, Path]]


def _plain(wanted: _Wanted) -> list[Exported]:
    return [Exported(place, _checkpoint(wanted, strength, place, wanted.dtype)) for strength, place in wanted.places]


def _checkpoint(wanted: _Wanted, strength: float, place: Path, dtype: torch.dtype) -> float:
    """A plain checkpoint at a strength, or under the class."""
    policy = wanted.policy
    if wanted.control is not None:
        return export_class(policy, wanted.control, place, dtype)
    passes = policy.tuner.passes(strength)
    if len(passes) > 1 or passes[0].prefix.ids:
        raise ControlError(
            f"strength {strength:g} of this run mixes passes at the logits, which no plain model does; export strength 1."
        )
    tuned = getattr(policy.tuner, "module", policy.model)
    with policy.tuner.at(passes[0].setting):
        return export_plain(tuned, policy.backbone.codec.tokenizer, place, dtype)


def _lora(wanted: _Wanted) -> list[Exported]:
    """PEFT's folder, and llama.cpp's file in it where the architecture has one."""
    policy, adapter = wanted.policy, result_of(wanted.run)
    if wanted.control is None:
        plain_lora(adapter)
    batch = probe(policy.backbone.model.config, policy.backbone.device)
    expected = []
    for strength, _ in wanted.places:
        number = None if wanted.control is None else policy.controls.number(wanted.control)
        with policy.tuner.at(strength if number is None else float(number)):
            expected.append(logits_of(policy.backbone.model, batch))
    bare: Any = policy.tuner.module.unload()  # type: ignore[attr-defined]
    made = []
    for (strength, place), wished in zip(wanted.places, expected, strict=True):
        if wanted.control is None:
            scaled_lora(adapter, place, strength)
        else:
            class_lora(adapter, place, wanted.control)
        with _removed_on_error(place):
            try:
                lora_gguf(place, bare.config)
                note = "for vLLM and PEFT; adapter.gguf for llama.cpp, beside the backbone as GGUF"
            except ModelError as error:
                note = f"for vLLM and PEFT; no file for llama.cpp: {error}"
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
                again = PeftModel.from_pretrained(bare, str(place)).eval()
            difference = float((logits_of(again, batch) - wished).abs().max())
            _refuse_other(difference, wished, bare.dtype)
            bare = again.unload()
        made.append(Exported(place, difference, note))
    return made


def _gguf(wanted: _Wanted) -> list[Exported]:
    """A merged model as one file."""
    need_gguf("--as gguf")
    architecture_of(wanted.policy.backbone.model.config)
    made = []
    for strength, place in wanted.places:
        with tempfile.TemporaryDirectory() as scratch, _removed_on_error(place):
            plain = Path(scratch) / "plain"
            difference = _checkpoint(wanted, strength, plain, wanted.dtype)
            if (plain / VECTORS).exists():
                raise ModelError("this class stands in the text as vectors, which a GGUF does not hold; export it as plain.")
            model = type(wanted.policy.backbone.model).from_pretrained(plain, dtype=wanted.dtype)
            place.mkdir(parents=True, exist_ok=True)
            told = write_model(model, AutoTokenizer.from_pretrained(plain), place / MODEL, wanted.dtype)
        made.append(Exported(place / MODEL, difference, told))
    return made


def _vector(wanted: _Wanted) -> list[Exported]:
    """RED's shift, compared with the run by adding it to the output of blocks."""
    policy, adapter, place = wanted.policy, result_of(wanted.run), wanted.places[0][1]
    need_gguf("--as control-vector")
    batch = probe(policy.backbone.model.config, policy.backbone.device)
    place.mkdir(parents=True, exist_ok=True)
    with _removed_on_error(place):
        lost = control_vector(adapter, policy.backbone.model.config, place / VECTOR)
        expected = logits_of(policy.backbone.model, batch)
        with policy.tuner.off(), _added_to_blocks(policy.backbone.model, place / VECTOR):
            difference = float((logits_of(policy.backbone.model, batch) - expected).abs().max())
        if not lost:
            _refuse_other(difference, expected, policy.backbone.model.dtype)
    note = f"llama.cpp: --control-vector-scaled {place / VECTOR}:S is strength S"
    if lost:
        note += f"; block 0's shift ({lost:.0%} of the whole, squared) is left out, which llama.cpp has no place for"
    return [Exported(place / VECTOR, difference, note)]


@contextmanager
def _removed_on_error(place: Path) -> Iterator[None]:
    """Either what is written inside is whole, or nothing is there."""
    try:
        yield
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


@contextmanager
def _added_to_blocks(model: Any, file: Path) -> Iterator[None]:
    """Inside, each block's output gets its direction of a control vector, as llama.cpp adds it."""
    directions = {tensor.name: torch.tensor(tensor.data) for tensor in need_gguf("GGUF").GGUFReader(str(file)).tensors}
    _, blocks = block_list(model)
    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            if f"direction.{number}" in directions:
                added_D = directions[f"direction.{number}"]
                hook = block.register_forward_hook(lambda _block, _given, out, added_D=added_D: out + added_D.to(out.dtype))
                hooks.callback(hook.remove)
        yield


def _refuse_other(difference: float, expected: Tensor, dtype: torch.dtype) -> None:
    """Raises ModelError for a difference beyond what rounding makes; NaN is one."""
    if not difference <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max())):
        raise ModelError(f"what was exported differs from the run by {difference:.2g} in its logits.")


FORMS: dict[str, Callable[[_Wanted], list[Exported]]] = {
    "plain": _plain,
    "lora": _lora,
    "gguf": _gguf,
    "control-vector": _vector,
}
