"""Writes the map in docs/walkthrough.md, a line per module of the package, from the docstrings: python docs/house.py"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("walkthrough.md")
BEGIN, END = "<!-- written by docs/house.py -->\n", "<!-- end -->\n"


def page() -> str:
    """The page as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + "".join(_lines()) + END + rest.partition(END)[2]


def _lines() -> Iterator[str]:
    """Packages from the top, each with the first sentence of its docstring, and below it the same of its modules."""
    for package in sorted({file.parent for file in (ROOT / "alignlab").rglob("*.py")}):
        yield f"\n**{package.relative_to(ROOT)}/**: {_sentence(package / '__init__.py')}\n\n"
        for file in sorted(package.glob("*.py")):
            if file.name != "__init__.py":
                yield f"* `{file.name}`: {_sentence(file)}\n"


def _sentence(file: Path) -> str:
    """The first sentence of a module's docstring, without a full stop."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split())
    return re.split(r"\.(?=\s+[A-Z]|$)", text.replace("`", ""), maxsplit=1)[0].replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
