"""Two or more adapters in one backbone, each with a strength of its own.

The layers of each are put around what stands at their places: an edit of an output that another adapter edits, too, comes last
where its run is named last. Logits are mixed over the product of all adapters' passes, so a strength that mixes logits (CLM's)
does so at each strength of the others: z = sum over passes p of the first and q of the second, w_p w_q z(p, q).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from alignlab.errors import ControlError, ModelError
from alignlab.models.policy import Policy
from alignlab.models.strength import NOTHING, Controls, Strength, WeightedPass, checked_strengths
from alignlab.tuners.peft_tuner import PeftTuner, own_weights, weights_hash

MOST = 2**16
"""Settings that are told apart at a time; the one that was not used for the longest makes room for a new one."""


class ComposedTuner:
    """Adapters by name. A setting is the number under which a combination of settings, one of each adapter, was noted: 0 and 1
    are all at 0, and all at 1. Threads may ask for numbers while another one is at a setting."""

    controls: Controls | None = None
    inserted = NOTHING

    def __init__(self, parts: Mapping[str, PeftTuner]) -> None:
        self.parts = dict(parts)
        self.adapters = tuple(parts)
        self.per_row = all(part.per_row for part in parts.values())
        self.starts_as_base = all(part.starts_as_base for part in parts.values())
        self.edits_head = any(part.edits_head for part in parts.values())
        self.one_strength = next((part.one_strength for part in parts.values() if part.one_strength), "")
        self._settings: dict[float, tuple[float, ...]] = {number: (number,) * len(parts) for number in (0.0, 1.0)}
        self._numbers = {settings: number for number, settings in self._settings.items()}
        self._noting = threading.Lock()
        self.default_passes = self.passes(1.0)

    def numbered(self, strength: Any, count: int | None = None) -> list[float]:
        """What was asked for each prompt, as settings: `strength` is a number for all adapters or a mapping from each name to
        one, or a list of those. Raises ControlError for a name that is missing or unknown, and as `checked_strengths`."""
        strength = strength.tolist() if isinstance(strength, Tensor) else strength
        many = isinstance(strength, Sequence) and not isinstance(strength, str)
        asked = list(strength) if many else [strength] * (1 if count is None else count)
        if count is not None and len(asked) != count:
            raise ControlError(f"{len(asked)} strengths were given for {count} prompts; give one, or one per prompt.")
        return [self._number(self._each(one)) for one in asked]

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """The product of all adapters' passes. `strength`: from `numbered`, one or one per row."""
        rows = strength.tolist() if isinstance(strength, Tensor) else [strength]
        columns = zip(*map(self._noted, rows), strict=True)
        each = [torch.tensor(one, device=strength.device) if isinstance(strength, Tensor) else one[0] for one in columns]
        given = [part.passes(one) for part, one in zip(self.parts.values(), each, strict=True)]
        made = []
        for chosen in itertools.product(*given):
            weight: Strength = 1.0
            for one in chosen:
                weight = weight * one.weight
            made.append(WeightedPass(weight, self._joined([one.setting for one in chosen], len(rows), strength)))
        return tuple(made)

    @contextmanager
    def at(self, setting: Strength) -> Iterator[None]:
        """Every adapter at its own setting."""
        rows = setting.tolist() if isinstance(setting, Tensor) else [setting]
        each = zip(*map(self._noted, rows), strict=True)
        with ExitStack() as stack:
            for part, settings in zip(self.parts.values(), each, strict=True):
                alike = len(set(settings)) == 1
                given = settings[0] if alike else torch.tensor(settings, device=setting.device)  # type: ignore[union-attr]
                stack.enter_context(part.at(given))
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """Without any of them."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.off())
            yield

    def _each(self, asked: Any) -> tuple[float, ...]:
        if not isinstance(asked, Mapping):
            return tuple(checked_strengths(asked, 1)) * len(self.parts)
        if set(asked) != set(self.parts):
            raise ControlError(
                f"strengths were given for {', '.join(map(str, asked))}; give one for each of {', '.join(self.parts)}."
            )
        return tuple(checked_strengths([asked[name] for name in self.parts]))

    def _number(self, settings: tuple[float, ...]) -> float:
        """The number of a combination, a new one where it is asked for the first time."""
        with self._noting:
            number = self._numbers.get(settings)
            if number is None:
                number = float(len(self._settings))
                if number >= 2 + MOST:
                    number = next(each for each in self._settings if each >= 2)
                    del self._numbers[self._settings.pop(number)]
                self._numbers[settings] = number
            self._settings[number] = self._settings.pop(number, settings)  # used last
        return number

    def _noted(self, number: float) -> tuple[float, ...]:
        """The combination of a number, which thereby counts as used last."""
        with self._noting:
            settings = self._settings[number] = self._settings.pop(number)
        return settings

    def _joined(self, settings: Sequence[Strength], rows: int, like: Strength) -> Strength:
        """Settings of all adapters in one pass, as numbers of combinations."""
        columns = [one.tolist() if isinstance(one, Tensor) else [one] * rows for one in settings]
        numbers = [self._number(row) for row in zip(*columns, strict=True)]
        return torch.tensor(numbers, device=like.device) if isinstance(like, Tensor) else numbers[0]


def compose(policies: Mapping[str, Policy]) -> Policy:
    """One policy of several with adapters of the same backbone: the first one's backbone carries all adapters.

    Raises ModelError for fewer than two, for backbones or templates that differ, for what is no adapter made of layers, and for
    two adapters that both add blocks.
    """
    if len(policies) < 2:
        raise ModelError("one run is loaded by itself; give several, each by a name of its own.")
    (_, first), *others = policies.items()
    parts = {name: _part(name, policy) for name, policy in policies.items()}
    if sum(part.adds_blocks for part in parts.values()) > 1:
        raise ModelError(
            f"{' and '.join(parts)} both put blocks in front of the first one, whose order was not trained; take one."
        )
    expected = weights_hash(first.model)
    for name, policy in others:
        if weights_hash(policy.model) != expected:
            raise ModelError(
                f"{name} was trained on other weights than {next(iter(parts))}; only adapters of one backbone compose."
            )
        if policy.backbone.codec.template_hash != first.backbone.codec.template_hash:
            raise ModelError(
                f"{name} was trained with another template than {next(iter(parts))}; only runs of one template compose."
            )
        _share_weights(first.model, policy.model)
        for place, layer in _placed(policy.model, parts[name].layers):
            _put_around(first.model, place, layer)
    return Policy(first.backbone, ComposedTuner(parts), packing=first.packing, pass_gib=first.pass_gib)


def _part(name: str, policy: Policy) -> PeftTuner:
    """The tuner of a run. Raises ModelError for one that does not compose."""
    tuner = policy.tuner
    if not isinstance(tuner, PeftTuner):
        raise ModelError(
            f"{name} has weights of the backbone in place of an adapter, so it does not compose; export it as plain."
        )
    if tuner.controls is not None or tuner.inserted.tokens:
        raise ModelError(f"{name} puts something into the text, which adapters of several runs cannot share; take it alone.")
    if tuner.beside.any or not all(isinstance(layer, BaseTunerLayer) for layer in tuner.layers):
        raise ModelError(f"{name} trained whole modules beside its adapter, which only one run can have; take it alone.")
    with tuner.off():  # refuses a LoRA that overwrote weights and has no way back to the backbone
        pass
    return tuner


def _placed(model: nn.Module, layers: Sequence[nn.Module]) -> list[tuple[str, Any]]:
    """Each layer with the name of its place in the bare backbone."""
    wanted = {id(layer) for layer in layers}
    return [(name.replace(".base_layer", ""), module) for name, module in model.named_modules() if id(module) in wanted]


def _share_weights(model: nn.Module, other: nn.Module) -> None:
    """Lets another model of the same weights have those of this one, so that they are in memory once."""
    own = own_weights(model)
    for name, parameter in own_weights(other).items():
        parameter.data = own[name].data


def _put_around(model: Any, place: str, layer: Any) -> None:
    """Puts an adapter's layer around what stands at a place of another model, whose config its modules then read."""
    for module in layer.modules():
        if hasattr(module, "config") and type(module.config) is type(model.config):
            module.config = model.config  # says how attention is computed
    parent, (*path, child) = model, place.split(".")
    for step in path:
        parent = getattr(parent, step) if hasattr(parent, step) else getattr(parent.get_base_layer(), step)  # type: ignore[operator]
    if isinstance(parent, BaseTunerLayer):
        parent = parent.get_base_layer()
    layer.base_layer = getattr(parent, child)
    setattr(parent, child, layer)
