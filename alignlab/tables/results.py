"""A sweep's numbers for the project's own files: one line per number, and where it came from. No path of a machine is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from alignlab.tables.jobs import Seen, Sweep, told

PACKAGES = ("alignlab", "torch", "transformers", "peft")
PLACE = "PATH"
"""What stands for a path of a machine."""
NONE, UNKNOWN = "none yet", "not known"


def obtained(sweep: Sweep) -> str:
    """CSV behind `# ` lines: every number of every seed with its n and its own 95 % interval; a job without numbers
    has one line with its state."""
    head = "".join(f"# {name}: {value}\n" for name, value in origin(sweep).items())
    frame = pd.DataFrame([line for seen in sweep.jobs for line in _lines(sweep, seen)])
    if "n" in frame:
        frame["n"] = frame["n"].astype("Int64")
    return head + frame.to_csv(index=False)


def origin(sweep: Sweep) -> dict[str, str]:
    """Where the numbers of a sweep came from, in words: a name and a value for each fact."""
    done = [seen for seen in sweep.jobs if seen.state.name == "done"]
    environments = [seen.environment for seen in done if seen.environment]
    times = sorted(str(seen.state.details["time"]) for seen in done if "time" in seen.state.details)
    return {
        "sweep": sweep.name,
        "command": without_paths(" ".join(["python run.py", *sweep.ledger.overrides()])),
        "jobs": told(sweep.jobs),
        "finished": NONE if not times else times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}",
        "commit": _each(_commit(environment) for environment in environments),
        **{name: _each(_version(environment, name) for environment in environments) for name in PACKAGES},
        "python": _each(str(environment.get("python", UNKNOWN)) for environment in environments),
        "machine": _each(_machine(environment) for environment in environments),
    }


def without_paths(words: str) -> str:
    """The same words with every path of a machine as PATH: absolute ones, and those that begin with ~ or .. ."""
    return re.sub(r"(?<![\w./~<-])(?:~|\.\.)?/[^\s,;:'\"()\[\]{}]*|(?<![\w./])\.\.(?=[\s,]|$)", PLACE, words)


def _lines(sweep: Sweep, seen: Seen) -> Iterable[dict[str, Any]]:
    job = seen.job
    settings = {name: job.settings.get(name, "") for name in sweep.settings}
    known = {"row": job.row, **settings, "seed": job.seed, "fingerprint": job.fingerprint, "state": seen.state.name}
    if not seen.results:
        yield known
    for result in seen.results:
        yield {**known, **result}


def _each(found: Iterable[str]) -> str:
    """Every different answer, in the order of the jobs."""
    return "; ".join(dict.fromkeys(found)) or NONE


def _commit(environment: Mapping[str, Any]) -> str:
    commit, changed = environment.get("commit"), environment.get("changed_files")
    if not commit:
        return UNKNOWN
    return f"{commit}, {'clean' if not changed else f'{changed} files changed since'}"


def _version(environment: Mapping[str, Any], name: str) -> str:
    return str(environment.get("packages", {}).get(name) or UNKNOWN)


def _machine(environment: Mapping[str, Any]) -> str:
    gpus = environment.get("gpus") or ()
    kind = f"{len(gpus)} GPU ({', '.join(dict.fromkeys(gpus))})" if gpus else "CPU"
    return f"{kind}, {environment.get('system', UNKNOWN)}"
