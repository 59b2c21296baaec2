"""The pages that commands write are current, and what other pages name exists."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from alignlab.evaluation import METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "AGENTS.md",
    *DOCS.glob("**/*.md"),
    *ROOT.glob("experiments/*/README.md"),
]
PAGES += [*ROOT.glob("alignlab/**/README.md")]
FOLDERS = ("alignlab", "benchmarks", "conf", "docs", "experiments", "hydra_plugins", "tests")
SCRIPTS = {"run.py", *(path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))}
"""The names of all Python files of the project."""


@pytest.fixture(scope="module", params=["options", "house"])
def script(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(DOCS))
        yield importlib.import_module(request.param)


def test_a_page_that_a_command_writes_is_current(script: ModuleType) -> None:
    assert script.PAGE.read_text() == script.page(), "run `make docs`"


def test_each_option_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(\S+)` \|.*\| (.*) \|$", (DOCS / "options.md").read_text(), re.MULTILINE)

    assert len(rows) > 150
    assert [key for key, meaning in rows if not meaning.strip()] == []


def test_the_map_names_every_module_once() -> None:
    house = (DOCS / "walkthrough.md").read_text().partition("## Map")[2]
    named: list[str] = []
    for part in house.split("\n**")[1:]:
        package = part.partition("/**")[0]
        named += [f"{package}/{file}" for file in re.findall(r"^\* `(\w+\.py)`: \S", part, re.MULTILINE)]

    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "alignlab").rglob("*.py") if file.name != "__init__.py"}

    assert sorted(named) == sorted(modules)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    paths = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", text)
    short = [f"alignlab/{path}" for path in re.findall(r"`([a-z_]+/[\w/]+\.py)`", text) if path.split("/")[0] not in FOLDERS]

    assert set(re.findall(r"`(\w+\.py)`", text)) - SCRIPTS == set()
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    assert [path for path in [*paths, *short] if "NAME" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("suite", ["toy", "preference", "fluency", "text", "lexicon"])
def test_each_metric_that_a_first_table_shows_is_defined_in_a_line(suite: str) -> None:
    page = (ROOT / "alignlab" / "evaluation" / "README.md").read_text()
    defined = re.findall(r"`([a-z0-9_]+/[a-z0-9_]+)`", "".join(re.findall(r"^\| (`.*?) \| .+ \|$", page, re.MULTILINE)))

    assert [name for name in defined if name.startswith(f"{suite}/")] == [f"{suite}/{metric}" for metric in METRICS[suite]]
