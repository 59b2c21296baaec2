"""The stage that only measures hidden states, and writes a profile of them, or the states themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignlab.data.batching import in_order, whole
from alignlab.data.encode import Limits, Truncation, encode
from alignlab.data.source import Source
from alignlab.errors import ConfigError
from alignlab.models.config import Shape
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import Batch, EncodedGroup, View
from alignlab.tracking.ledger import Ledger
from alignlab.training.config import TrainerConfig
from alignlab.training.stages import MeasuringStage, Session, Work
from alignlab.tuners.config import LayersConfig

PROFILE = "profile.json"
COUNTS = "counts.json"
"""What a stage leaves that counts the choices of each task."""
STATES = "states.safetensors"
GROUPS_PER_PASS = 16
BYTES = 4
"""Of a stored number."""
MIB = 2**20

Measure = Callable[[Policy, Batch, Sequence[int]], tuple[Tensor, Tensor]]
"""(policy, batch, layers) -> two sets of states at the response tokens of each group, L,K,D."""


class Stored:
    """The states that a stage has kept of every group, found by its row; a `Measure`. It belongs to one run: the stage says
    where the file is."""

    def __init__(self) -> None:
        self._file: Any = None
        self._rows: set[str] = set()

    def cache_key(self) -> str:
        """The same for every run: what it holds follows from the stage that keeps it."""
        return "stored"

    def open(self, path: Path) -> None:
        """Reads from this file from now on."""
        self._file = safe_open(path, framework="pt")
        self._rows = {name.partition(":")[2] for name in self._file.keys()}  # noqa: SIM118 - a file is no mapping

    def __call__(self, policy: Policy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What was measured. Raises ConfigError for a row that is not in the file."""
        if not set(batch.rows) <= self._rows:
            raise ConfigError("stage fit reads states that stage shift did not keep; run both with the same settings.")
        both = [torch.cat([self._file.get_tensor(f"{kind}:{row}") for row in batch.rows], dim=1) for kind in ("base", "shift")]
        base, shift = (states.to(policy.backbone.device) for states in both)
        return base, shift


@dataclass(frozen=True)
class CollectStage(MeasuringStage):
    """Measures `base` states and a `shift` of them. `sample`: how many groups are measured, evenly from the split; all of them
    where `store` keeps the states, which may take `store_mib`."""

    name: str
    split: str
    view: View
    measure: Measure
    layers: LayersConfig
    truncation: Truncation
    sample: int
    store: Stored | None = None
    store_mib: float = 0.0

    def prepare(self, source: Source, codec: Codec, limits: Limits) -> Work:
        """Encodes the split, and takes the sample."""
        groups, account = encode(source.split(self.split), self.view, codec.examples, self.truncation(limits))
        wanted = min(self.sample, len(groups))
        looked = groups if self.store else [groups[number * len(groups) // wanted] for number in range(wanted)]
        kept = "keeps the states of" if self.store else "looks at"
        return Work(looked, account, 0, f"{kept} {len(looked)} of {len(groups)}")

    def check(self, work: Work, trainer: TrainerConfig, shape: Shape) -> None:
        """Raises ConfigError for layers outside the backbone, and for states that would take more than they may."""
        layers = len(self.layers.of(shape))
        if self.store is None:
            return
        needed = 2 * BYTES * layers * shape.width * sum(_tokens(group) for group in work.groups) / MIB
        if needed > self.store_mib:
            raise ConfigError(
                f"stage {self.name} would keep {needed:.0f} MiB of states, and may keep {self.store_mib:g}; set"
                " method.cached=false to compute them when they are needed, or raise method.cache_mib."
            )

    @torch.no_grad()
    def run(self, policy: Policy, work: Work, session: Session) -> None:
        """Measures, and writes profile.json and, where it is asked for, the states."""
        folder = session.stage_folder(self.name)
        folder.mkdir(parents=True, exist_ok=True)
        layers = self.layers.of(policy.backbone.shape)
        norms, directions, kept = [], [], {}
        wanted = min(session.trainer.micro_batch or GROUPS_PER_PASS, GROUPS_PER_PASS)
        members, longest = len(work.groups[0].members), max(group.length for group in work.groups)
        for rows in in_order(work.groups, policy.budget.groups(members, longest, wanted)):
            groups = [work.groups[row] for row in rows]
            batch = whole(groups, policy.backbone.codec.pad).to(policy.backbone.device)
            base_LKD, shift_LKD = self.measure(policy, batch, layers)
            norms.append(torch.stack([base_LKD.norm(dim=-1), shift_LKD.norm(dim=-1)]).cpu())
            lengths = [_tokens(group) for group in groups]
            for group, base, shift in zip(groups, base_LKD.split(lengths, 1), shift_LKD.split(lengths, 1), strict=True):
                directions.append(shift.mean(1).cpu())
                if self.store:
                    kept[f"base:{group.row}"] = base.cpu().contiguous()
                    kept[f"shift:{group.row}"] = shift.cpu().contiguous()
        profile = _profile(layers, torch.cat(norms, dim=2), torch.stack(directions))
        Ledger(folder).write(PROFILE, profile)
        for name, values in profile["series"].items():
            named = {f"{name}_{layer}".replace(" ", "_"): value for layer, value in zip(layers, values, strict=True)}
            session.log(self.name, 0, {key: value for key, value in named.items() if value is not None})
        if self.store:
            save_file(kept, folder / STATES)
            self.store.open(folder / STATES)

    def restore(self, policy: Policy, folder: Path) -> None:
        """Finds the states again."""
        if self.store:
            self.store.open(folder / STATES)


def _tokens(group: EncodedGroup) -> int:
    """Response tokens of one member; all members hold the same response."""
    return group.response_tokens // len(group.members)


def _profile(layers: Sequence[int], norms_2LK: Tensor, directions_NLD: Tensor) -> dict[str, Any]:
    """Per layer: mean norm of the shift, its ratio to the mean norm of the states, and the mean cosine between the shifts of
    two groups, each the mean over its tokens; None where there is no shift, or one group."""
    base_L, shift_L = norms_2LK.double().mean(2)
    unit_NLD = torch.nn.functional.normalize(directions_NLD.double(), dim=-1)
    count = len(unit_NLD)
    # The sum of all cosines is the square of the sum of unit vectors; a group with itself is 1.
    cosine_L = (unit_NLD.sum(0).square().sum(-1) - count) / max(1, count * (count - 1))
    cosines = [float(cosine) if count > 1 and norm > 0 else None for cosine, norm in zip(cosine_L, shift_L, strict=True)]
    return {
        "title": f"shift of hidden states (n = {count})",
        "x": {"label": "layer", "values": list(layers)},
        "series": {
            "norm of the shift": shift_L.tolist(),
            "ratio to the states": (shift_L / base_L).tolist(),
            "cosine between items": cosines,
        },
    }
