"""What a sweep is called: its table, and what the command line adds to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence

from alignlab.config import NO_INFLUENCE
from alignlab.errors import ConfigError

LONGEST = 100


def name_of(fixed: Sequence[str], swept: Collection[str], words: Sequence[str]) -> str:
    """The experiment, if there is one, and every other word of the command line that is not one of its own swept keys.

    `fixed`: words that all jobs share; `swept`: the keys that an experiment sweeps itself, which a command line may narrow;
    `words`: the command line's own sweeps. So `seed=7` narrows a table, and `method.beta=1.0` makes another one.
    """
    experiment = next((word.partition("=")[2] for word in fixed if word.startswith("experiment=")), "")
    added = sorted(word for word in (*fixed, *words) if word != f"experiment={experiment}" and _counts(word, swept))
    extra = "+".join(added)
    if "/" in extra or len(extra) > LONGEST or re.search(r"[^\w.,=+-]", extra):
        # A folder's name, and what goes to W&B: no paths, no blanks.
        extra = hashlib.sha256(extra.encode()).hexdigest()[:8]
        extra = extra if experiment else f"sweep-{extra}"
    return "+".join(part for part in (experiment, extra) if part) or "sweep"


def checked(name: object) -> str | None:
    """A name that somebody gave. Raises ConfigError for one that would not be a folder below the runs."""
    if name is None:
        return None
    if not isinstance(name, str) or (re.search(r"[^\w.,=+/-]", name) or not all(part.strip(".") for part in name.split("/"))):
        raise ConfigError(f"sweep={name!r} must be letters, digits and .,=+-, in parts between slashes; it becomes a folder.")
    return name


def decisive(words: Collection[str], swept: Collection[str]) -> set[str]:
    """The words that tell one sweep from another, in any order."""
    return {word for word in words if _counts(word, swept)}


def _counts(word: str, swept: Collection[str]) -> bool:
    key = word.partition("=")[0]
    return key not in swept and key.lstrip("+").partition(".")[0] not in NO_INFLUENCE
