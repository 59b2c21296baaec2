"""CLM as a tuner of the frame: which blocks are added, and what a strength means."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from alignlab.errors import ConfigError
from alignlab.models.strength import Strength, WeightedPass
from alignlab.tuners.clm.config import ClmConfig
from alignlab.tuners.clm.layer import block_at
from alignlab.tuners.config import ClmTunerConfig
from alignlab.tuners.peft_tuner import PeftTuner
from alignlab.tuners.targets import block_names, matched, near
from alignlab.tuners.tuner import mixed_logits, one_pass

log = logging.getLogger(__name__)
USUAL = (-0.5, 2.0)
"""Strengths that the papers use on dialogue; beyond them texts often break (CLM, figure 3; InRa, table 9)."""


class ClmTuner(PeftTuner):
    """z = s z_aligned + (1 - s) z_plain (paper, section 4.3), or with `merge` embeddings one pass with h + s (Phi(h) - h)."""

    _warned = False

    def _find(self) -> None:
        super()._find()
        self.starts_as_base = self.module.active_peft_config.start == "identity"

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """Both streams, or one of them at exactly 0 and 1; a single pass where the embeddings are merged."""
        self._warn_beyond(strength)
        config = self.module.active_peft_config
        return one_pass(strength) if config.merge == "embeddings" else mixed_logits(strength)

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """Rows at 1 go through the new blocks, rows at 0 past them."""
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
    """Adds the blocks, in front of the first one that is named or found.

    Raises ConfigError for names that the model does not have, ModelError for a model that no block can be put in front of.
    """
    first = _first_block(config, model)
    return ClmTuner(
        model,
        ClmConfig(
            blocks=config.blocks,
            start=config.start,
            merge=config.merge,
            target_modules=None if first is None else rf"(.*\.)?{re.escape(first)}",
            writes=config.writes,
        ),
    )


def _first_block(config: ClmTunerConfig, model: PreTrainedModel) -> str | None:
    """The name of the block that the config describes; None leaves it to the table of layouts."""
    if config.writes is None:
        return None
    if config.targets is not None:
        found = matched(model, config.targets, "tuner.targets", (nn.Module,))
        if len(found) != 1:
            raise ConfigError(f"tuner.targets={config.targets} names {', '.join(found[:3])}, ...; it must name one block.")
        first = found[0]
    else:
        blocks = block_names(model)
        if not blocks:
            raise ConfigError("no list of like blocks is found in this model; name the first one in tuner.targets.")
        first = blocks[0]
    block = model.get_submodule(first)
    inside = [name for name, _ in (*block.named_modules(), *block.named_parameters()) if name]
    for write in config.writes:
        if write not in inside:
            raise ConfigError(f"tuner.writes: {first} has no {write!r}; nearest here: {near(write, inside)}.")
    return first
