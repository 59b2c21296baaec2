"""The stage that counts which vectors of a bank the texts of which task choose. It changes nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignlab.data.batching import in_order
from alignlab.data.encode import Limits, encode
from alignlab.data.source import Source, Split, drawn_from
from alignlab.models.config import Shape
from alignlab.models.policy import Policy
from alignlab.models.text import Codec
from alignlab.records import View
from alignlab.tracking.ledger import Ledger
from alignlab.training.collect import COUNTS, GROUPS_PER_PASS
from alignlab.training.config import TrainerConfig
from alignlab.training.stages import MeasuringStage, Session, Work

ALL = "all"
"""What rows are counted under where the data has one source."""


@dataclass(frozen=True)
class SelectionStage(MeasuringStage):
    """Behind a stage: of the first `rows` texts of each of its `sources` (None = all of the data), how often each vector is
    chosen, the entropy of that (nats), and how many vectors nobody chooses; and how long the vectors are, beside the embeddings
    of the backbone, since long ones win every product."""

    name: str
    view: View
    rows: int
    sources: tuple[str, ...] | None = None

    def prepare(self, source: Source, codec: Codec, limits: Limits) -> Work:
        """Encodes the first training rows of each source."""
        whole, _ = drawn_from(source, "train", self.sources)
        seen: Counter[str | None] = Counter()
        first = []
        for record in whole.records:
            seen[record.task] += 1
            if seen[record.task] <= self.rows:
                first.append(record)
        groups, account = encode(Split(tuple(first)), self.view, codec.examples, limits)
        return Work(groups, account, 0, f"counts the vectors that {len(groups)} texts choose")

    def check(self, work: Work, trainer: TrainerConfig, shape: Shape) -> None:
        """Nothing can be wrong here."""

    def run(self, policy: Policy, work: Work, session: Session) -> None:
        """Writes counts.json, and logs entropy, unchosen vectors and mean lengths. A tuner without a bank leaves
        nothing."""
        folder = session.stage_folder(self.name)
        folder.mkdir(parents=True, exist_ok=True)
        tuner: Any = policy.tuner
        if not tuner.table.retrieved:
            return
        counts: dict[str, Tensor] = {}
        for rows in in_order(work.groups, GROUPS_PER_PASS):
            groups = [work.groups[row] for row in rows]
            sources = [group.members[0].ids[: group.members[0].start] for group in groups]
            index_RK = tuner.selected(_padded(sources, policy.backbone.codec.pad).to(policy.backbone.device)).cpu()
            for group, index_K in zip(groups, index_RK, strict=True):
                count_N = counts.setdefault(group.task or ALL, torch.zeros(len(tuner.table.bank_ND), dtype=torch.long))
                count_N += index_K.bincount(minlength=len(count_N)).clamp(max=1)
        texts = Counter(group.task or ALL for group in work.groups)
        named = {task: counts[task].tolist() for task in texts}
        Ledger(folder).write(COUNTS, {"title": "chosen vectors of the bank", "texts": dict(texts), "counts": named})
        session.log(self.name, 0, lengths(tuner.table.bank_ND, tuner.layer.base_layer.weight))
        for task, count_N in counts.items():
            session.log(self.name, 0, {f"{task}/entropy": entropy(count_N), f"{task}/unchosen": float((count_N == 0).sum())})

    def restore(self, policy: Policy, folder: Path) -> None:
        """It has left nothing in the policy."""


def lengths(bank_ND: Tensor, embedding_VD: Tensor) -> dict[str, float]:
    """The mean length of a bank's vectors and that of the embeddings."""
    with torch.no_grad():
        return {
            name: float(rows.float().norm(dim=1).mean())
            for name, rows in (("mean_length", bank_ND), ("mean_embedding_length", embedding_VD))
        }


def entropy(count_N: Tensor) -> float:
    """Of choices, in nats: ln K where all texts choose the same K vectors, ln N where all N are chosen alike."""
    share_N = count_N.double() / count_N.sum()
    return float(-(share_N * share_N.clamp(min=math.ulp(0)).log()).sum())


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
