"""Kinds of backbone: what goes in, what comes out, and how a batch runs through one. Light: torch comes with `implementation`.

A kind is found from the checkpoint's own config.json, or named by `model.kind`. Nothing outside this folder asks its name:
policies, stages and suites call its methods, and a run is checked against the capabilities that it provides.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.models.backbone import Backbone
    from alignlab.models.layout import Layout
    from alignlab.models.probes import Abilities
    from alignlab.records import Batch


class Kind(Protocol):
    """How text, batches and weights of one kind of backbone fit together. It has no state."""

    task_type: str
    """PEFT's word for it."""

    auto: Any
    """The class of transformers that loads it."""

    def abilities(self, backbone: Backbone) -> Abilities:
        """What a backbone of this kind can do, tried on a few short rows. Raises ModelError for one that does not run."""

    def layout(self, backbone: Backbone, batch: Batch, shared: bool) -> Layout:
        """The rows of a forward pass, and where in them the target tokens are predicted. `shared`: all of them in
        one, where a prefix that all members of a group have is computed once."""

    def hidden(self, backbone: Backbone, layout: Layout) -> Tensor:
        """What `head` makes logits of, at each of K positions that predict a target token, K,D."""

    def head(self, backbone: Backbone, hidden_KD: Tensor) -> Tensor:
        """Logits, K,V."""

    def states(self, backbone: Backbone, layout: Layout, layers: Sequence[int]) -> Tensor:
        """Outputs of blocks `layers` (1 = the first) at the target tokens themselves, L,K,D; it stops behind the highest."""


@dataclass(frozen=True)
class KindEntry:
    """A row of the table. `provides`: capabilities that methods and suites may require."""

    place: str
    provides: frozenset[str]

    def implementation(self) -> Kind:
        """The kind itself; imports torch."""
        module, _, name = self.place.rpartition(".")
        made: Kind = getattr(importlib.import_module(f"{__name__}.{module}"), name)()
        return made


KINDS: Mapping[str, KindEntry] = {
    "causal": KindEntry("causal.Causal", frozenset({"token likelihood", "generation", "hidden states"})),
}
