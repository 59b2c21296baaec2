"""Tuning the backbone's own weights: all of them (`full`) or its biases (`bitfit`).

The knob interpolates between the weights as they were and as they are, theta(s) = theta0 + s (theta1 - theta0): our choice
(the dial of WiSE-FT, arXiv 2109.01903, section 3), since plain fine-tuning has none. BitFit: arXiv 2106.10199.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from alignlab.errors import ModelError
from alignlab.models.knob import Strength, Term
from alignlab.tuners.config import BitfitConfig, FullConfig
from alignlab.tuners.tuner import between, one_pass, origins

FILE = "weights.safetensors"


class WeightsTuner:
    """Some of the backbone's parameters, learned in place; a copy of where they started is kept for the knob."""

    per_row = False

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        self.module: nn.Module = model
        every = dict(model.named_parameters())
        self._named = {name: every[name] for name in names}
        self._origins = origins(self._named.values())

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return list(self._named.values())

    def terms(self, strength: Strength) -> tuple[Term, ...]:
        """One pass at this strength."""
        return one_pass(strength)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """Weights between start (0) and trained (1), or beyond."""
        return between(self._origins, setting)

    def off(self) -> AbstractContextManager[None]:
        """Weights as they were."""
        return between(self._origins, 0.0)

    def save(self, folder: Path) -> None:
        """Writes the learned tensors, and no others."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: parameter.detach().contiguous() for name, parameter in self._named.items()}
        save_file(tensors, folder / FILE, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        """Reads the learned tensors back."""
        tensors = load_file(folder / FILE)
        if tensors.keys() != self._named.keys():
            raise ModelError(f"{folder / FILE} holds other tensors than this tuner learns; it belongs to another model.")
        for name, parameter in self._named.items():
            parameter.data.copy_(tensors[name])


def full(_config: FullConfig, model: PreTrainedModel) -> WeightsTuner:
    """Every weight."""
    return WeightsTuner(model, [name for name, _ in model.named_parameters()])


def bitfit(_config: BitfitConfig, model: PreTrainedModel) -> WeightsTuner:
    """Every bias; raises ModelError for a backbone that has none (Llama)."""
    names = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    if not names:
        raise ModelError(
            f"tuner=bitfit tunes biases, but a {model.config.model_type} model has none; take tuner=red, whose shift is a bias."
        )
    return WeightsTuner(model, names)
