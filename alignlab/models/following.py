"""Answers followed while they are written, several in one batch: what each has said so far, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

if TYPE_CHECKING:
    from alignlab.models.text import Codec

Follow = Callable[[int, "Sequence[int] | None"], bool]
"""(the number of a text, its new ids so far) -> whether it ends with them; None: its logits are no longer finite."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer of bytes says where the last character is not whole yet."""


class Finite(LogitsProcessor):
    """Knows the rows whose logits are no longer finite, B, and makes them 0, which can be drawn from."""

    lost_B: Tensor

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.lost_B = ~scores.amax(-1).isfinite()
        return scores.masked_fill(self.lost_B[:, None], 0.0)


class Followed(StoppingCriteria):
    """Tells `follow` the new ids of each text, those behind `begin`, until it says that the text has ended. `rows`: the numbers
    of the texts."""

    def __init__(self, follow: Follow, rows: Sequence[int], begin: int, finite: Finite) -> None:
        self._follow, self._rows, self._begin, self._finite = follow, rows, begin, finite
        self._ended = [False] * len(rows)

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        new = input_ids[:, self._begin :].tolist()
        for place, lost in enumerate(self._finite.lost_B.tolist()):
            if not self._ended[place]:
                self._ended[place] = self._follow(self._rows[place], None if lost else new[place])
        return torch.tensor(self._ended, device=input_ids.device)


class Pieces:
    """A text that grows, in pieces that add up to the whole: what may still be cut or changed by what follows is held back.
    `stop`: the texts in front of which it ends."""

    def __init__(self, codec: Codec, stop: Sequence[str]) -> None:
        chat = codec.chat
        closing = chat.closing if chat else ""
        self._held = max((len(text) for text in (*stop, f"{closing}.")), default=1) - 1
        self._opening = chat.opening if chat else ""
        self._sent = ""

    def next(self, text: str, *, ended: bool) -> str:
        """What `text`, all that was said so far, adds to the pieces before."""
        whole = text if ended else text[: len(text) - self._held].rstrip(UNFINISHED)
        if not ended and (not whole.startswith(self._sent) or len(whole) <= len(self._opening)):
            return ""
        piece, self._sent = whole[len(self._sent) :], whole
        return piece
