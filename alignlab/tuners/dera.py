"""DeRa, decoding-time realignment (arXiv 2402.02992): two whole models of one architecture, mixed at the logits.

The aligned model is learned in place, or read from a checkpoint; the weights as they were stay beside it. Turning the tuner
swaps pointers, so both passes use one module and two sets of weights.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel

from alignlab.errors import ModelError
from alignlab.models.strength import Strength, WeightedPass
from alignlab.tuners.config import DeraConfig
from alignlab.tuners.tuner import mixed_logits
from alignlab.tuners.weights import WeightsTuner


class DeraTuner(WeightsTuner):
    """z = s z_aligned + (1 - s) z_backbone (DeRa, eq. 12), a pass for each model."""

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """Both models, or one of them at exactly 0 and 1."""
        return mixed_logits(strength)


def build(config: DeraConfig, model: PreTrainedModel) -> DeraTuner:
    """Every weight is learned; with `aligned`, the checkpoint's weights are put in its place."""
    tuner = DeraTuner(model, [name for name, _ in model.named_parameters()])
    if config.aligned is not None and model.device.type != "meta":
        _put_in(model, Path(config.aligned))
        tuner.starts_as_base = False
    return tuner


def _put_in(model: PreTrainedModel, folder: Path) -> None:
    """Copies a checkpoint's weights into the model. Raises ModelError where the shapes or the names are others."""
    try:
        aligned = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"tuner.aligned={folder} could not be loaded ({str(error).splitlines()[0]}).") from error
    theirs, ours = dict(aligned.named_parameters()), dict(model.named_parameters())
    if {name: tensor.shape for name, tensor in theirs.items()} != {name: tensor.shape for name, tensor in ours.items()}:
        raise ModelError(f"tuner.aligned={folder} has other names or shapes of weights than the backbone.")
    for name, parameter in ours.items():
        parameter.data.copy_(theirs[name])
