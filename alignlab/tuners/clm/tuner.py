"""CLM as a tuner of the frame: which blocks are added, and what a strength means."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor
from transformers import PreTrainedModel

from alignlab.models.knob import Strength, Term
from alignlab.tuners.clm.config import ClmConfig
from alignlab.tuners.clm.layer import block_at
from alignlab.tuners.config import ClmTunerConfig
from alignlab.tuners.peft_tuner import PeftTuner
from alignlab.tuners.tuner import mixed_logits, one_pass

log = logging.getLogger(__name__)
USUAL = (-0.5, 2.0)
"""Strengths that the papers use on dialogue; beyond them texts often break (CLM, figure 3; InRa, table 9)."""


class ClmTuner(PeftTuner):
    """z = s z_aligned + (1 - s) z_plain (paper, section 4.3), or with `merge` embeddings one pass with h + s (Phi(h) - h)."""

    _warned = False

    def terms(self, strength: Strength) -> tuple[Term, ...]:
        """Both streams, or one of them at exactly 0 and 1; a single pass where the embeddings are merged."""
        self._warn_beyond(strength)
        config = self.module.active_peft_config
        return one_pass(strength) if config.merge == "embeddings" else mixed_logits(strength)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """Rows at 1 go through the new blocks, rows at 0 past them."""
        if isinstance(setting, float) and setting == 1.0:
            return nullcontext()
        return block_at(self.module, setting)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Without the blocks, which afterwards are copies of the first block as it is then."""
        with self.off():
            yield
        for layer in self.layers:
            layer.follow_base()

    def _warn_beyond(self, strength: Strength) -> None:
        given = strength.tolist() if isinstance(strength, Tensor) else [strength]
        beyond = [value for value in given if not USUAL[0] <= value <= USUAL[1]]
        if beyond and not self._warned:
            self._warned = True
            log.warning("strength %g lies outside %g to %g, where texts often break down", beyond[0], *USUAL)


def build(config: ClmTunerConfig, model: PreTrainedModel) -> ClmTuner:
    """Adds the blocks."""
    settings = ClmConfig(task_type="CAUSAL_LM", blocks=config.blocks, start=config.start, merge=config.merge)
    return ClmTuner(model, settings)
