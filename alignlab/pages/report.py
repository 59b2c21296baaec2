"""The page of a sweep: what was run, what came of every job, the numbers, the figures, and where all of it came from."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from alignlab.data.encode import Account
from alignlab.errors import AlignlabError
from alignlab.plots.jobs import draw
from alignlab.tables.blocks import blocks_of
from alignlab.tables.jobs import Seen, Sweep, told
from alignlab.tables.lines import Table
from alignlab.tables.published import Published
from alignlab.tables.results import origin, without_paths
from alignlab.tracking.ledger import now

TEMPLATE = "report.html.j2"
CAPTIONS = {
    "dial": "Along the strength dial",
    "frontier": "What turns against what must not",
    "map": "Over two settings",
    "curves": "While they learn",
}


@dataclass(frozen=True)
class Figure:
    """An SVG to stand in the page, or why there is none."""

    caption: str
    svg: str = ""
    why_not: str = ""


def page_of(table: Table, published: Published | None, experiments: Path) -> str:
    """The page as HTML. Everything that was read from files is escaped, and paths of a machine are left out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("alignlab.pages", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sweep = table.sweep
    return environment.get_template(TEMPLATE).render(
        name=sweep.name,
        written=now(),
        told=told(sweep.jobs),
        origin=origin(sweep),
        jobs=[_job(sweep, seen) for seen in sweep.jobs],
        blocks=blocks_of(table, published, experiments),
        figures=_figures(sweep),
        accounts=list(dict.fromkeys(account for seen in sweep.jobs for account in _accounts(sweep, seen))),
    )


def _job(sweep: Sweep, seen: Seen) -> dict[str, str]:
    words = seen.state.details
    return {
        "label": sweep.label(seen),
        "seed": str(seen.job.seed),
        "state": seen.state.name,
        "time": str(words.get("time", ""))[:16].replace("T", " "),
        "said": seen.state.progress or without_paths(str(words.get("error", ""))),
        "folder": seen.job.folder,
        "words": without_paths(" ".join(seen.job.overrides)),
    }


def _figures(sweep: Sweep) -> list[Figure]:
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, caption in CAPTIONS.items():
            if kind == "map" and len(sweep.names) != 2:
                continue
            path = Path(folder) / f"{kind}.svg"
            try:
                made.append(Figure(caption, svg=_inline(draw(sweep, kind, path), kind)))
            except AlignlabError as error:
                made.append(Figure(caption, why_not=str(error)))
    return made


def _inline(path: Path, kind: str) -> str:
    """An SVG file as an element of a page: no prologue, and names that no other figure of the page has."""
    text = path.read_text(encoding="utf-8")
    element = text[text.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{kind}-", element)


def _accounts(sweep: Sweep, seen: Seen) -> Iterable[tuple[str, ...]]:
    """Of each stage: who, which stage, what became of its rows, and parameters; one line for seeds that agree."""
    parameters = seen.report.get("parameters", {})
    learned = f"{parameters['learned']:,} of {parameters['all']:,}" if parameters else ""
    for stage, account in seen.report.get("rows", {}).items():
        yield (sweep.label(seen), stage, Account(**account).sentence(), learned)
