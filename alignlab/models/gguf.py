"""GGUF files (github.com/ggml-org/ggml, docs/gguf.md), which llama.cpp reads: a plain model with its tokenizer, and the names
and layouts that a model's layers have there.

Written by the package `gguf` (pip install 'alignlab[gguf]'). Q and K of Llama stand in another order of rows, since llama.cpp
turns neighbouring pairs where transformers turns halves.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignlab.errors import ModelError

log = logging.getLogger(__name__)

ARCHITECTURES: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model type of transformers -> architecture of llama.cpp, of those that are written here; in all of them a block adds the
output of its feed-forward layer to the residual stream as it is."""

PERMUTED = ("llama",)
"""Architectures whose Q and K are stored in llama.cpp's own order of rows."""

DEFAULT_ROTATIONS = ("default", "llama3")
"""Kinds of rotary positions that are written; llama3 as a factor per frequency."""

DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS: Mapping[str, str] = {LLAMA3_SPLIT: "llama-bpe", QWEN2_SPLIT: "qwen2"}
"""Pattern that cuts a text before byte pairs are merged -> its name in llama.cpp."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Types of tokens."""

SPACE = "\u2581"
"""A space in the vocabulary of a SentencePiece model."""


def need_gguf(what: str) -> Any:
    """The package. Raises ModelError where it is not installed."""
    if find_spec("gguf") is None:
        raise ModelError(f"{what} needs the package gguf, which is not installed; pip install 'alignlab[gguf]'.")
    import gguf

    return gguf


def architecture_of(config: Any) -> str:
    """llama.cpp's name for a model's architecture. Raises ModelError for one that is not written here."""
    kind = str(config.model_type)
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"a {kind} model is not written as GGUF here (known: {', '.join(ARCHITECTURES)}); export it as plain and convert it"
            " with llama.cpp's convert_hf_to_gguf.py."
        )
    return ARCHITECTURES[kind]


class Names:
    """The names of a model's tensors in GGUF, and their layout there."""

    def __init__(self, config: Any) -> None:
        gguf = need_gguf("GGUF")
        self.architecture = architecture_of(config)
        number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        self._map = gguf.get_tensor_name_map(number, config.num_hidden_layers)
        self._heads = config.num_attention_heads
        self._keyed = getattr(config, "num_key_value_heads", None) or self._heads

    def of(self, name: str) -> str:
        """The name of a tensor, `.weight` or `.bias` included. Raises ModelError for one that has no place."""
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(f"{name} has no place in a GGUF of architecture {self.architecture}.")
        return str(found)

    def laid(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor in llama.cpp's order of rows, which is another one for Q and K of Llama."""
        heads = {"q_proj": self._heads, "k_proj": self._keyed}.get(name.rpartition(".")[0].rpartition(".")[2])
        if heads is None or self.architecture not in PERMUTED:
            return tensor
        return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, file: Path, dtype: torch.dtype) -> str:
    """Writes a plain model, matrices in `dtype` and vectors in float32; returns what a reader should know, or "".

    What was written is read back and compared, number by number. A tokenizer of a kind that GGUF has no word for is left out:
    such a file takes ids.

    Raises:
        ModelError: the package is missing, the architecture, the kind of rotary positions or a tensor has no place in GGUF, or
            the file does not hold what was to be written.
    """
    gguf = need_gguf("--as gguf")
    names = Names(model.config)
    writer = gguf.GGUFWriter(str(file), names.architecture)
    _describe(writer, model, dtype)
    told = _tokenizer(writer, tokenizer, model.config.vocab_size)
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    expected = {}
    for name, tensor in _tensors(model):
        laid = names.laid(name, tensor.detach().cpu())
        kind = gguf.GGMLQuantizationType[kinds[dtype] if laid.dim() > 1 else "F32"]
        data = gguf.quants.quantize(np.ascontiguousarray(laid.float().numpy()), kind)
        expected[names.of(name)] = (data, kind)
        writer.add_tensor(names.of(name), data, raw_shape=data.shape, raw_dtype=kind)
    factors = _rotation_factors(model)
    if factors is not None:
        expected["rope_freqs.weight"] = (factors, gguf.GGMLQuantizationType.F32)
        writer.add_tensor("rope_freqs.weight", factors)
    _finish(writer)
    _compare(gguf, file, expected)
    return told


def write_tensors(file: Path, architecture: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A GGUF of named float32 tensors that is no model: an adapter, or a control vector. `values`: its keys, each a text, a
    whole number or a float."""
    gguf = need_gguf("GGUF")
    writer = gguf.GGUFWriter(str(file), architecture)
    for key, value in values.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)
    expected = {}
    for name, tensor in tensors.items():
        data = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
        expected[name] = (data, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(name, data)
    _finish(writer)
    _compare(gguf, file, expected)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _compare(gguf: Any, file: Path, expected: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises ModelError where a file does not hold these tensors, bit for bit."""
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(str(file)).tensors}
    for name, (data, kind) in expected.items():
        back = found.get(name)
        if back is None or back.tensor_type != kind or np.asarray(back.data).tobytes() != data.tobytes():
            raise ModelError(f"{file} does not hold {name} as it was written; export it again.")


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model by name; a head that is the embedding stands there once."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor


def _describe(writer: Any, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """The shape of a model. Raises ModelError for rotary positions of another kind."""
    config: Any = model.config
    rotation = _rotation(config)
    if rotation["rope_type"] not in DEFAULT_ROTATIONS:
        raise ModelError(
            f"rotary positions of kind {rotation['rope_type']} are not written as GGUF here (known:"
            f" {', '.join(DEFAULT_ROTATIONS)}); export it as plain and convert it with llama.cpp's convert_hf_to_gguf.py."
        )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rotation["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    kind = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}[dtype]
    writer.add_file_type(need_gguf("GGUF").LlamaFileType[kind])


def _rotation(config: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **(config.rope_parameters or {})}


def _rotation_factors(model: PreTrainedModel) -> Any:
    """What each frequency is divided by, where it is not the default one; else None."""
    rotation = _rotation(model.config)
    if rotation["rope_type"] == "default":
        return None
    found = next(buffer for name, buffer in model.named_buffers() if name.endswith("rotary_emb.inv_freq"))
    places = torch.arange(0, 2 * len(found), 2, dtype=torch.float64) / (2 * len(found))
    plain = 1.0 / rotation["rope_theta"] ** places
    return (plain / found.double().cpu()).float().numpy()


def _tokenizer(writer: Any, tokenizer: Any, size: int) -> str:
    """The tokenizer's vocabulary and merges, or "none"; returns the sentence that says which is left out."""
    written = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer is not None and tokenizer.is_fast else None
    form = None if written is None else _form(written)
    if tokenizer is None or written is None or form is None:
        writer.add_tokenizer_model("none")
        return "its tokenizer has no form in GGUF, so llama.cpp takes ids, and no text"
    model, pre = form
    pieces, kinds = _pieces(tokenizer, written, size)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in written["model"]["merges"]]
    if model == "gpt2":
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores(_scores(pieces, merges))
    for role, token in (("bos", tokenizer.bos_token_id), ("eos", tokenizer.eos_token_id), ("pad", tokenizer.pad_token_id)):
        if token is not None:
            getattr(writer, f"add_{role}_token_id")(token)
    first = tokenizer("a").input_ids[0]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    return ""


def _form(written: Mapping[str, Any]) -> tuple[str, str] | None:
    """llama.cpp's model and pre-tokenizer for a tokenizer of byte pairs; None where it has none that is known here."""
    model, before = written["model"], written.get("pre_tokenizer")
    if model["type"] != "BPE":
        return None
    if model.get("byte_fallback"):
        steps = (written.get("normalizer") or {}).get("normalizers", [])
        spaced = [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
        return ("llama", "default") if before is None and steps == spaced else None
    if written.get("normalizer") not in (None, {"type": "NFC"}) or before is None:
        return None
    *cuts, last = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    merged_whole = bool(model.get("ignore_merges"))
    if last["use_regex"] and not merged_whole:
        return {0: ("gpt2", "gpt-2"), 1: ("gpt2", "smollm") if cuts == [DIGITS] else None}.get(len(cuts))
    pattern = cuts[0].get("pattern", {}).get("Regex") if len(cuts) == 1 else None
    pre = SPLITS.get(str(pattern))
    # llama.cpp looks whole words up first for llama-bpe, and for no other.
    return ("gpt2", pre) if pre and merged_whole == (pre == "llama-bpe") else None


def _pieces(tokenizer: Any, written: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every id's text, and its type; ids that the tokenizer does not use are filled up."""
    pieces = [f"[PAD{number}]" for number in range(size)]
    kinds = [USER_DEFINED] * size
    unknown = written["model"].get("unk_token")
    for piece, number in tokenizer.get_vocab().items():
        if number < size:
            pieces[number] = piece
            is_byte = len(piece) == 6 and piece.startswith("<0x") and bool(written["model"].get("byte_fallback"))
            kinds[number] = BYTE if is_byte else UNKNOWN if piece == unknown else NORMAL
    for added in written["added_tokens"]:
        if added["id"] < size and kinds[added["id"]] != UNKNOWN:
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return pieces, kinds


def _scores(pieces: list[str], merges: list[str]) -> list[float]:
    """A score per piece, by which llama.cpp orders merges: minus the rank of the first merge that makes it."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), number)
    return [-float(rank.get(piece, len(merges))) for piece in pieces]
