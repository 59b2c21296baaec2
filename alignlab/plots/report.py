"""A sweep as one HTML page: what was run, the state of every job, the tables, the figures, and the origin of the numbers.

The page is a single file that loads nothing from any server.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from alignlab.data.encode import Account
from alignlab.errors import AlignlabError
from alignlab.plots.sweep import draw
from alignlab.tables.render import Published, sections_of
from alignlab.tables.sweep import JobResult, Sweep, Table, count_states, origin, without_paths
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
    """An SVG element, or the reason why there is none."""

    caption: str
    svg: str = ""
    why_not: str = ""


def page_of(table: Table, published: Published | None, experiments: Path) -> str:
    """The page as HTML. Everything that was read from files is escaped, and paths of a machine are left out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("alignlab.plots", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sweep = table.sweep
    return environment.get_template(TEMPLATE).render(
        name=sweep.name,
        written=now(),
        states=count_states(sweep.jobs),
        origin=origin(sweep),
        jobs=[_job(sweep, job) for job in sweep.jobs],
        sections=sections_of(table, published, experiments),
        figures=_figures(sweep),
        accounts=list(dict.fromkeys(account for job in sweep.jobs for account in _accounts(sweep, job))),
    )


def _job(sweep: Sweep, job: JobResult) -> dict[str, str]:
    details = job.state.details
    return {
        "label": sweep.label(job),
        "seed": str(job.spec.seed),
        "state": job.state.name,
        "time": str(details.get("time", ""))[:16].replace("T", " "),
        "message": job.state.progress or without_paths(str(details.get("error", ""))),
        "folder": job.spec.folder,
        "overrides": without_paths(" ".join(job.spec.overrides)),
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
    """An SVG file as an element of a page: without prologue, and with ids that no other figure of the page has."""
    text = path.read_text(encoding="utf-8")
    element = text[text.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{kind}-", element)


def _accounts(sweep: Sweep, job: JobResult) -> Iterable[tuple[str, ...]]:
    """Of each stage: the job, the stage, the account of its rows, and the trained parameters."""
    parameters = job.report.get("parameters", {})
    learned = f"{parameters['learned']:,} of {parameters['all']:,}" if parameters else ""
    for stage, account in job.report.get("rows", {}).items():
        yield (sweep.label(job), stage, Account(**account).sentence(), learned)
