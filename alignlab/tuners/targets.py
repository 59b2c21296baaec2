"""Which layers of a model a tuner's targets name, and the sentence where they name none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ConfigError
from alignlab.registry import nearest

LINEAR = (nn.Linear, Conv1D)
SHOWN = 8
"""Names that a refusal lists where none is near."""

Targets = Sequence[str] | str
"""Ends of names, each behind a dot or the whole name, or one pattern that matches whole names."""


def matched(model: nn.Module, targets: Targets, key: str, kinds: tuple[type[nn.Module], ...] = LINEAR) -> list[str]:
    """The names of the layers that `targets` name. `key`: where they were given, for the sentence.

    Raises ConfigError for a name or a pattern that no module has, and for modules that are not of these `kinds`.
    """
    modules = dict(model.named_modules())
    found: dict[str, None] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        pattern = target if isinstance(targets, str) else rf"(?:.*\.)?{re.escape(target)}"
        here = [name for name in modules if re.fullmatch(pattern, name)]
        if not here:
            layers = [name for name, module in modules.items() if isinstance(module, kinds)]
            raise ConfigError(f"{key}: {target!r} names no layer of this model; nearest here: {near(target, layers)}.")
        other = next((name for name in here if not isinstance(modules[name], kinds)), None)
        if other is not None:
            allowed = " or ".join(kind.__name__ for kind in kinds)
            inside = [name for name, module in modules.items() if name.startswith(f"{other}.") and isinstance(module, kinds)]
            hint = f", for example {', '.join(_short(inside)[:SHOWN])}" if inside else ""
            raise ConfigError(
                f"{key}: {target!r} names {other}, a {type(modules[other]).__name__}; name layers of type {allowed}{hint}."
            )
        found.update(dict.fromkeys(here))
    return [name for name in modules if name in found]


def near(name: str, known: Iterable[str]) -> str:
    """The known names that look most like the given one, or some, without the number of their block and what stands before."""
    short = _short(known)
    wanted = re.sub(r"^.*\*\.?", "", name.replace("\\.", "."))
    ends = {each.rpartition(".")[2]: each for each in reversed(short)}
    close = [ends.get(each, each) for each in nearest(wanted, [*short, *ends])]
    return ", ".join(dict.fromkeys(close) or short[:SHOWN])


def block_names(model: PreTrainedModel) -> list[str]:
    """Names of the blocks of the first stack, in order; empty where no list of that many like modules is found."""
    count = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and len({type(block) for block in module}) == 1:
            return [f"{name}.{index}" for index in range(len(module))]
    return []


def _short(names: Iterable[str]) -> list[str]:
    return sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})
