"""What happens to a strength outside the range at which a run was seen to hold: it is told of, moved to the nearest end, or
refused. Each adapter of a model made of several has the range that was measured for it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from alignlab.errors import ControlError
from alignlab.evaluation.safe_range import SafeRange

if TYPE_CHECKING:
    from alignlab.models.strength import AskedStrength

Outside: TypeAlias = Literal["warn", "clamp", "refuse"]
OUTSIDE: tuple[str, ...] = get_args(Outside)

Ranges: TypeAlias = "Mapping[str, SafeRange | None]"
"""The range of each adapter of a model, by its name; that of one run alone by the name of the model. None where none was
measured: every strength is answered."""


def kept_inside(strength: AskedStrength, ranges: Ranges, outside: Outside) -> tuple[AskedStrength, str | None]:
    """The strength that is answered, and what to say of it, None where it is inside. Raises ControlError where it is outside
    and those are refused."""
    several = len(ranges) > 1
    each = dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(ranges, strength)
    beyond = {name: safe for name, safe in ranges.items() if safe is not None and not safe.contains(each[name])}
    if not beyond:
        return strength, None
    said = " and ".join(
        f"strength {each[name]:g}{f' of {name}' if several else ''} is outside the safe range {safe.span}, in"
        f" which {safe.metric} was seen to hold"
        for name, safe in beyond.items()
    )
    if outside == "refuse":
        raise ControlError(f"{said}; ask for a strength inside.")
    if outside == "warn":
        return strength, f"{said}; the answer may be worse than the backbone's."
    moved = {**each, **{name: safe.clamped(each[name]) for name, safe in beyond.items()}}
    answered: AskedStrength = moved if several else next(iter(moved.values()))
    return answered, f"{said}; answered at {named(answered)}."


def named(strength: AskedStrength) -> str:
    """A strength in words: a number, or names with numbers."""
    if isinstance(strength, Mapping):
        return ", ".join(f"{name} {value:g}" for name, value in strength.items())
    return f"{strength:g}"
