"""The passes behind a batch of texts: one stream of cache rows per text and term, mixed at the logits before all else.

Shapes: B texts, R rows of a pass (a text has one row per term of weight other than 0), T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.models.controls import led_rows
from alignlab.models.knob import Knob, Lead, Strength, Term


@dataclass
class _Stream:
    """Rows that run in one pass. `mixed_R`: the text of each row, and its weight; None = every text once, with weight 1.
    `leads`: what stands in each row beside its text. `mask_RT`: what the rows hold so far, leads included."""

    mixed_R: tuple[Tensor, Tensor] | None
    setting: Strength
    leads: Sequence[Lead]
    cache: Any = None
    mask_RT: Tensor | None = None

    def fed(self, ids_RT: Tensor, mask_RT: Tensor) -> tuple[Tensor, Tensor]:
        """New tokens of the rows and the mask of all their tokens; the first ones get their leads."""
        if self.mask_RT is None:
            ids_RT, mask_RT = (
                led_rows(ids_RT, mask_RT, self.leads) if any(lead.ids for lead in self.leads) else (ids_RT, mask_RT)
            )
        else:
            mask_RT = torch.cat([self.mask_RT, mask_RT[:, -ids_RT.shape[1] :]], dim=1)
        self.mask_RT = mask_RT
        return ids_RT, mask_RT


class Streams:
    """Runs all terms of a mixture side by side. Where rows of a pass may differ in their setting, it is a single pass.

    A context: the knob is turned inside. `step` feeds new tokens of every text and returns the mixed logits.
    """

    def __init__(self, model: nn.Module, knob: Knob, terms: Sequence[Term], texts: int, device: torch.device) -> None:
        self._model, self._knob, self._texts = model, knob, texts
        self._streams = _laid(terms, texts, knob.per_row, device)
        self._inside = ExitStack()

    def __enter__(self) -> Streams:
        if len(self._streams) == 1:  # one setting for every step
            self._inside.enter_context(self._knob.at(self._streams[0].setting))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._inside.close()

    def step(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits in fp32 after the last of the new tokens, B,V. mask_BT covers all tokens so far, padding on the left."""
        first, *others = self._streams
        logits_BV = self._weighted(first, ids_BT, mask_BT)
        for stream in others:
            logits_BV = logits_BV + self._weighted(stream, ids_BT, mask_BT)
        return logits_BV

    def _weighted(self, stream: _Stream, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        if stream.mixed_R is None:
            return self._last_logits(stream, ids_BT, mask_BT)
        owner_R, weight_R = stream.mixed_R
        logits_RV = self._last_logits(stream, ids_BT[owner_R], mask_BT[owner_R]) * weight_R[:, None]
        return logits_RV.new_zeros(self._texts, logits_RV.shape[1]).index_add(0, owner_R, logits_RV)

    def _last_logits(self, stream: _Stream, ids_RT: Tensor, mask_RT: Tensor) -> Tensor:
        ids_RT, mask_RT = stream.fed(ids_RT, mask_RT)
        with self._at(stream):
            output = self._model(
                input_ids=ids_RT,
                attention_mask=mask_RT,
                position_ids=(mask_RT.cumsum(1) - 1).clamp(min=0)[:, -ids_RT.shape[1] :],
                past_key_values=stream.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        stream.cache = output.past_key_values
        logits_RV: Tensor = output.logits[:, -1].float()
        return logits_RV

    def _at(self, stream: _Stream) -> AbstractContextManager[None]:
        return nullcontext() if len(self._streams) == 1 else self._knob.at(stream.setting)


def _laid(terms: Sequence[Term], texts: int, together: bool, device: torch.device) -> list[_Stream]:
    """The rows of each pass. Rows of weight 0 do not run, so a text at an end of the dial costs one row."""
    if len(terms) == 1 and terms[0].weight == 1.0:
        return [_Stream(None, terms[0].setting, [terms[0].lead] * texts)]
    every = torch.arange(texts, device=device)
    owners, weights, settings, leads = [], [], [], []
    for term in terms:
        weight_B = torch.as_tensor(term.weight, dtype=torch.float32, device=device).expand(texts)
        setting_B = torch.as_tensor(term.setting, dtype=torch.float32, device=device).expand(texts)
        owners.append(every[weight_B != 0])
        weights.append(weight_B[owners[-1]])
        settings.append(setting_B[owners[-1]])
        leads.append([term.lead] * len(owners[-1]))
    if together:
        return [_Stream((torch.cat(owners), torch.cat(weights)), torch.cat(settings), [*chain(*leads)])]
    rows = zip(owners, weights, settings, leads, strict=True)
    return [_Stream((owner_R, weight_R), setting_R, lead_R) for owner_R, weight_R, setting_R, lead_R in rows if len(owner_R)]
