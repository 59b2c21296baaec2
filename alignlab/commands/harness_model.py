"""The model `alignlab` of lm-evaluation-harness: a finished run at a strength or under a class. Importing this registers it."""

from __future__ import annotations

from typing import Any

from lm_eval.api.registry import register_model

from alignlab.errors import ControlError
from alignlab.evaluation import Point
from alignlab.evaluation.harness_model import PolicyLM
from alignlab.finished import load


@register_model("alignlab")
class RunLM(PolicyLM):
    """`run`: a run folder; `strength` or `control`: where it is asked; `tokens`: of one pass. Other arguments that the harness
    gives every model (its batch size, say) have no meaning here, since passes are filled by tokens."""

    def __init__(
        self, run: str, strength: float = 1.0, control: str | None = None, tokens: int = 4096, seed: int = 0, **given: Any
    ) -> None:
        asked = str(given.get("device") or "auto")  # the harness asks for a card where nobody asked it, and where there is none
        policy = load(str(run), device="cpu" if asked == "cpu" else "auto")
        super().__init__(policy, point_of(strength, control), int(tokens), int(seed))


def point_of(strength: float, control: str | None) -> Point:
    """A strength as a number, or a class. Raises ControlError for a strength that is none."""
    try:
        value = float(strength)
    except (TypeError, ValueError) as error:
        raise ControlError(f"strength={strength} is no number; give one, such as strength=1.5.") from error
    return Point(value, control or "strength", control)
