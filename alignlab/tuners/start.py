"""Where weights that are learned in place started: found again where they are on a disk, else kept beside them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ModelError
from alignlab.models.kinds import new_head
from alignlab.tuners.tuner import origins

PLAIN = "model.safetensors"
"""As transformers calls the weights of a whole model."""

SAMPLED = 16
"""Numbers looked at from each end of a tensor."""

Pairs = list[tuple[nn.Parameter, Tensor]]
"""Each parameter beside what it was."""


class Start:
    """The first numbers of some parameters, a classifier's head left out: no checkpoint has it.

    Of every weight of a checkpoint no copy is kept: the first time that the start is asked for, it is read from the disk again
    and let go; the second time it stays. So a run that computes its reference once, and is measured at strength 1, holds its
    weights once. Of some weights, and of a model that was drawn anew, a copy is kept.
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
        """What the parameters are at this moment is their start; a copy is kept until `is_in`."""
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
        """Some numbers of each tensor, by which other weights are told."""
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
