"""Tuning the backbone's own weights: all of them (`full`, `dera`), its biases (`bitfit`) or some of its blocks (`blocks`).

The tuner interpolates between start and trained weights, theta(s) = theta0 + s (theta1 - theta0): our choice (WiSE-FT, arXiv
2109.01903, section 3), since plain fine-tuning has no strength. BitFit: arXiv 2106.10199. DeRa (arXiv 2402.02992) mixes the
logits of both ends instead; the two passes use one module and swap its weights.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from alignlab.errors import ModelError
from alignlab.models.anatomy import block_list
from alignlab.models.kinds import new_head
from alignlab.models.strength import NOTHING, ONE_PASS, Strength, WeightedPass
from alignlab.tuners.config import BitfitConfig, BlocksConfig, DeraConfig, FullConfig
from alignlab.tuners.tuner import Tuner, between, mixed_logits, origins

FILE = "weights.safetensors"
PLAIN = "model.safetensors"
"""transformers' file name for the weights of a whole model."""

SAMPLED = 16
"""Values compared from each end of a tensor."""

Pairs = list[tuple[nn.Parameter, Tensor]]
"""Parameters and the values that they started from."""


class Start:
    """The values that some parameters started from, a classifier's new head left out: no checkpoint has it.

    Where these are all weights of a checkpoint, no copy is kept: on the first use the start is read from disk and dropped
    afterwards, on the second it is kept. So a run that computes its reference once, and is evaluated at strength 1, holds its
    weights once. Of a part of the weights, and of a randomly initialised model, a copy is kept.
    """

    def __init__(self, model: PreTrainedModel, named: Mapping[str, nn.Parameter]) -> None:
        self._model, self._named = model, dict(named)
        self._every = len(named) + len(new_head(model)) == len(dict(model.named_parameters()))
        self._source: Path | None = None
        found = self._every and bool(model.name_or_path)
        self._kept: Pairs | None = None if found else origins(self._named.values())
        self._asked = False
        self._seen = self._sample([parameter.data for parameter in self._named.values()])

    @contextmanager
    def pairs(self) -> Iterator[Pairs]:
        """Each parameter beside its start. Raises ModelError where the checkpoint cannot be read any more."""
        if self._kept is None and not any(parameter.is_meta for parameter in self._named.values()):
            read = self._read()
            if self._asked:
                self._kept = read
            self._asked = True
            yield read
            return
        yield self._kept or origins(self._named.values())

    def is_now(self) -> None:
        """The present values become the start; a copy is kept until `is_in`."""
        self._kept = origins(self._named.values())
        self._seen = self._sample([parameter.data for parameter in self._named.values()])

    def is_in(self, file: Path) -> None:
        """The start is what this file holds, under the parameters' names."""
        if self._every:
            self._source, self._kept, self._asked = file, None, False

    def _read(self) -> Pairs:
        start = self._pretrained() if self._source is None else load_file(self._source)
        like = {name: parameter for name, parameter in start.items() if name in self._named}
        same = like.keys() == self._named.keys() and all(like[name].shape == p.shape for name, p in self._named.items())
        found = [like[name].to(p.device, p.dtype) for name, p in self._named.items()] if same else []
        if not same or not torch.equal(self._sample(found), self._seen):
            where = self._source or self._model.name_or_path
            raise ModelError(f"{where} does not hold the weights that training started from any more; put them back.")
        return list(zip(self._named.values(), found, strict=True))

    @staticmethod
    def _sample(tensors: list[Tensor]) -> Tensor:
        """The first and last `SAMPLED` values of each tensor: a changed checkpoint is recognised by them."""
        if any(tensor.is_meta for tensor in tensors):
            return torch.empty(0)
        ends = [torch.cat([tensor.flatten()[:SAMPLED], tensor.flatten()[-SAMPLED:]]).float() for tensor in tensors]
        return torch.cat(ends).cpu()

    def _pretrained(self) -> dict[str, Tensor]:
        """The weights as they were loaded: same class, same type."""
        model, where = self._model, self._model.name_or_path
        config = copy.deepcopy(model.config)
        revision = getattr(config, "_commit_hash", None)
        try:
            again = type(model).from_pretrained(
                where, config=config, dtype=model.dtype, use_safetensors=True, **({"revision": revision} if revision else {})
            )
        except (OSError, ValueError) as error:
            first = str(error).partition("\n")[0]
            raise ModelError(
                f"{where}, which training started from, could not be read again ({first}); put it back."
            ) from error
        with torch.no_grad():
            return {name: parameter.detach() for name, parameter in again.named_parameters()}


class WeightsTuner:
    """Some of the backbone's parameters, learned in place; `Start` has the values that they started from.

    A classifier's new head has no checkpoint: it stays as trained at every strength, and is as it was drawn in `off`.
    """

    per_row = False
    controls = None
    inserted = NOTHING
    adds_parameters = False
    starts_as_base = True
    default_passes = ONE_PASS
    edits_head = True

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
        return (WeightedPass(1.0, strength),)

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
        """From now on the start is read from this checkpoint; `save` writes the learned weights only, and names no base."""
        self._start.is_in(folder / PLAIN)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Nothing to switch off: the weights are the backbone's own. Their values on leaving become the start."""
        yield
        self._start.is_now()

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """None."""
        return {}

    def made_of(self, parts: Collection[str]) -> None:
        """There are none."""
        del parts

    def save(self, folder: Path) -> None:
        """Writes the learned tensors, and no others."""
        write(self._named, folder)

    def load(self, folder: Path) -> None:
        """Reads the learned tensors back."""
        read(self._named, folder)


class DeraTuner(WeightsTuner):
    """z = s z_aligned + (1 - s) z_backbone (DeRa, eq. 12), a pass for each model."""

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """Both models, or one of them at exactly 0 and 1."""
        return mixed_logits(strength)


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


def dera(config: DeraConfig, model: PreTrainedModel) -> DeraTuner:
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
