"""A class of a control as a plain checkpoint: its LoRA merged, or the model as it is with the class's vectors in a file."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignlab.errors import ModelError
from alignlab.models.export import TOLERANCE, export_plain
from alignlab.models.policy import Policy
from alignlab.models.strength import WITHOUT
from alignlab.records import NO_CLASS
from alignlab.tuners.control.tuner import ControlTuner

VECTORS, ABOUT = "prefix.safetensors", "prefix.json"
HOW = (
    "prefix.safetensors holds the vectors of one class, tokens x width. Embed the prompt with the model's input embedding, put"
    " the vectors behind its first `behind` tokens, and call the model, or generate, with `inputs_embeds`."
)


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
