"""What peft trains beside an edit: whole modules (`modules_to_save`) and rows of an embedding (`trainable_token_indices`).

Both are shared by all rows of a batch, and both keep what they were, so they follow the tuner: 0 is what they were, 1 what they
have become. A classifier's head has no start worth going back to, so it stays as trained at every strength.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from alignlab.tuners.tuner import between, setting

HEADED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""Task types whose head peft trains of itself, from random numbers."""


class ModulesToSave:
    """The modules and token rows that are trained beside an adapter. `names`: theirs, without the heads."""

    def __init__(self, model: PeftModel) -> None:
        trunk = f"base_model.model.{getattr(model.get_base_model(), 'base_model_prefix', '')}."
        headed = str(getattr(model.active_peft_config, "task_type", None)).rpartition(".")[2] in HEADED
        self._every: list[nn.Module] = []
        self._turned: list[nn.Module] = []
        self.names: list[str] = []
        for name, module in model.named_modules():
            if isinstance(module, (AuxiliaryTrainingWrapper, TrainableTokensLayer)):
                self._every.append(module)
                if headed and not name.startswith(trunk):
                    continue
                self._turned.append(module)
                if isinstance(module, AuxiliaryTrainingWrapper):
                    self.names.append(name.removeprefix("base_model.model."))

    @property
    def any(self) -> bool:
        """Whether anything is, heads included."""
        return bool(self._every)

    def off(self) -> AbstractContextManager[None]:
        """Everything as it was before training, heads included."""
        return setting("_disable_adapters", True, self._every)

    @contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """All but heads as they were (0), as trained (1), in between, or beyond."""
        # At 0 the module itself and no copy of its numbers, which may have another type.
        with setting("_disable_adapters", True, self._turned) if strength == 0.0 else between(self._pairs(), strength):
            yield

    def _pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        """What is trained, each tensor once, beside what it was."""
        pairs: dict[int, tuple[nn.Parameter, Tensor]] = {}
        for module in self._turned:
            for parameter, origin in _trained(module):
                pairs[id(parameter)] = (parameter, origin)
        return list(pairs.values())


def _trained(module: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    if isinstance(module, ModulesToSaveWrapper):
        for name in module.active_adapters:
            if name in module.modules_to_save:
                was = dict(module.original_module.named_parameters())
                for key, parameter in module.modules_to_save[name].named_parameters():
                    yield parameter, was[key].detach()
    elif isinstance(module, TrainableTokensLayer):
        for name in module.active_adapters:
            if name in module.trainable_tokens_delta:
                yield module.trainable_tokens_delta[name], module.trainable_tokens_original[name]
