"""Tuning the backbone's own weights: all of them (`full`), its biases (`bitfit`) or some of its blocks (`blocks`).

The tuner interpolates between the weights as they were and as they are, theta(s) = theta0 + s (theta1 - theta0): our choice
(the dial of WiSE-FT, arXiv 2109.01903, section 3), since plain fine-tuning has none. BitFit: arXiv 2106.10199.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ModelError
from alignlab.models.anatomy import block_list
from alignlab.models.kinds import new_head
from alignlab.models.strength import Strength, WeightedPass
from alignlab.tuners.config import BitfitConfig, BlocksConfig, FullConfig
from alignlab.tuners.start import PLAIN, Start
from alignlab.tuners.tuner import Tuner, between, one_pass, origins

FILE = "weights.safetensors"


class WeightsTuner:
    """Some of the backbone's parameters, learned in place; where they started is kept, or found again, for the tuner.

    A classifier's head has no start worth going back to: it stays as trained at every strength, and is new again in `off`.
    """

    per_row = False
    controls = None
    adds_parameters = False
    starts_as_base = True

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        self.module: nn.Module = model
        every = dict(model.named_parameters())
        self._named = {name: every[name] for name in names}
        head = set(new_head(model))
        self._start = Start(model, {name: parameter for name, parameter in self._named.items() if name not in head})
        self._head = origins([parameter for name, parameter in self._named.items() if name in head])

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return list(self._named.values())

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """One pass at this strength."""
        return one_pass(strength)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """Weights between start (0) and trained (1), or beyond."""
        if isinstance(setting, float) and setting == 1.0:
            return nullcontext()
        return self._between(setting)

    def off(self) -> AbstractContextManager[None]:
        """Weights as they were."""
        return self._between(0.0, self._head)

    @contextmanager
    def _between(self, strength: Strength, more: Sequence[tuple[nn.Parameter, Tensor]] = ()) -> Iterator[None]:
        with self._start.pairs() as pairs, between([*pairs, *more], strength):
            yield

    def set_base_model(self, folder: Path) -> None:
        """Where the weights started is found there from now on; what is saved are weights, without a word about others."""
        self._start.is_in(folder / PLAIN)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """The weights are the backbone's, so they may be trained as such; where that ends, the tuner begins."""
        yield
        self._start.is_now()

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """None."""
        return {}

    def save(self, folder: Path) -> None:
        """Writes the learned tensors, and no others."""
        write(self._named, folder)

    def load(self, folder: Path) -> None:
        """Reads the learned tensors back."""
        read(self._named, folder)


class StoredWeights:
    """Parameters under their names, kept in one file."""

    def __init__(self, named: Mapping[str, nn.Parameter], file: str) -> None:
        self._named, self._file = dict(named), file

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return list(self._named.values())

    def save(self, folder: Path) -> None:
        """Writes them."""
        write(self._named, folder, self._file)

    def load(self, folder: Path) -> None:
        """Reads them back."""
        read(self._named, folder, self._file)


class BackboneWeights(StoredWeights):
    """The backbone itself as what a stage trains, whatever tuner sits in it, under the names of a plain checkpoint."""

    def __init__(self, model: nn.Module, tuner: Tuner) -> None:
        added = {id(parameter) for parameter in tuner.parameters()} if tuner.adds_parameters else set()
        # Named as without a tuner, so that the file does not depend on which one was there.
        named = {
            name.replace(".base_layer", "").replace(".original_module", "").replace(".token_adapter", ""): parameter
            for name, parameter in model.named_parameters()
            if id(parameter) not in added
        }
        super().__init__(named, PLAIN)


def write(named: Mapping[str, nn.Parameter], folder: Path, file: str = FILE) -> None:
    """Writes parameters under their names as one file of safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().contiguous() for name, parameter in named.items()}
    save_file(tensors, folder / file, metadata={"format": "pt"})


def read(named: Mapping[str, nn.Parameter], folder: Path, file: str = FILE) -> None:
    """Fills parameters from what `write` left. Raises ModelError where the names are others."""
    tensors = load_file(folder / file)
    if tensors.keys() != named.keys():
        raise ModelError(f"{folder / file} holds other tensors than are learned here; it belongs to another model or tuner.")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[name])


def digest(folder: Path) -> str:
    """A short hash of a backbone's weights on disk: the same weights, the same hash."""
    made = hashlib.sha256()
    with (folder / PLAIN).open("rb") as file:
        while piece := file.read(1 << 20):
            made.update(piece)
    return made.hexdigest()[:16]


def full(_config: FullConfig, model: PreTrainedModel) -> WeightsTuner:
    """Every weight."""
    return WeightsTuner(model, [name for name, _ in model.named_parameters()])


def bitfit(_config: BitfitConfig, model: PreTrainedModel) -> WeightsTuner:
    """Every bias, and a classifier's head; raises ModelError for a backbone that has no biases (Llama)."""
    new = set(new_head(model))
    names = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias" or name in new]
    if not set(names) - new:
        raise ModelError(
            f"tuner=bitfit tunes biases, but a {model.config.model_type} model has none; take tuner=red, whose shift is a bias."
        )
    return WeightsTuner(model, names)


def blocks(config: BlocksConfig, model: PreTrainedModel) -> WeightsTuner:
    """Some of the blocks (CLM, table 6); raises ModelError where the backbone has fewer."""
    holder, every = block_list(model)
    if config.count > len(every):
        raise ModelError(f"tuner.count={config.count} is more than the {len(every)} blocks of this backbone.")
    chosen = range(config.count) if config.side == "bottom" else range(len(every) - config.count, len(every))
    prefixes = tuple(f"{holder}.{index}." for index in chosen)
    names = [name for name, _ in model.named_parameters() if name.startswith(prefixes)]
    return WeightsTuner(model, [*names, *new_head(model)])
