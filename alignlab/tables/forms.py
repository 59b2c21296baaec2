"""Blocks of words as Markdown and LaTeX, and a table's numbers as CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from alignlab.errors import ConfigError
from alignlab.evaluation.statistics import RESAMPLES
from alignlab.tables.blocks import Block
from alignlab.tables.lines import Table, difference, spread
from alignlab.tables.published import Published, beside, beyond

SUFFIXES = {".md": "md", ".tex": "latex", ".csv": "csv"}
TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "\\": "\\textbackslash{}",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
        "±": "$\\pm$",
    }
)


def form_for(form: str | None, to: Path | None) -> str:
    """md, latex or csv: as asked for, or as the suffix of the file says. Raises ConfigError for a suffix that says none."""
    if form or to is None:
        return form or "md"
    if to.suffix not in SUFFIXES:
        raise ConfigError(f"--to {to} does not say its form; let it end in {', '.join(SUFFIXES)}, or give --form.")
    return SUFFIXES[to.suffix]


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """A heading, and a table per block, its columns padded so that it can be read as it is."""
    return "\n".join([f"# {title}", "", *(line for block in blocks for line in _markdown(block))])


def latex(title: str, blocks: Sequence[Block]) -> str:
    """A floating table per block, for the package booktabs."""
    return f"% {' '.join(title.split())}; needs \\usepackage{{booktabs}}\n" + "\n".join(_latex(block) for block in blocks)


def long_csv(table: Table, published: Published | None) -> str:
    """One line per number, with everything known of it; an empty cell is not known, never zero."""
    pairs = beside(table, published)
    rows = []
    for line in table.lines:
        printed_row = pairs.get(line.key)
        settings = {name: line.settings.get(name, "") for name in table.sweep.settings}
        point = {"strength": line.strength, "control": line.control}
        for metric in table.metrics or ("",):
            found, compared = spread(line, metric), difference(table, line, metric)
            printed = published.printed(printed_row, metric) if published else ""
            rows.append(
                {
                    "table": table.sweep.name,
                    "row": line.row,
                    **settings,
                    **point,
                    "suite": metric.partition("/")[0],
                    "metric": metric.partition("/")[2],
                    "mean": found.mean if found else None,
                    "deviation": found.deviation if found else None,
                    "lowest": found.lowest if found else None,
                    "highest": found.highest if found else None,
                    "seeds": found.seeds if found else 0,
                    "seeds_declared": len(line.jobs),
                    "mark": line.mark(metric),
                    "n_per_seed": " ".join(str(count) for count in found.items) if found else "",
                    "baseline": table.baseline if compared else "",
                    "difference": compared.value if compared else None,
                    "difference_low": compared.low if compared else None,
                    "difference_high": compared.high if compared else None,
                    "pairs": compared.n if compared else None,
                    "resamples": RESAMPLES if compared and not math.isnan(compared.low) else None,
                    "published_row": printed_row or "",
                    "published": printed,
                    "minus_published": beyond(found.mean, printed) if found else None,
                }
            )
    return pd.DataFrame(rows).astype({"pairs": "Int64", "resamples": "Int64"}).to_csv(index=False)


def _markdown(block: Block) -> list[str]:
    made = [f"## {block.title}", ""]
    if not block.cells.empty:
        lines = [[_cell(name) for name in block.cells.columns], *([_cell(c) for c in row] for row in block.cells.to_numpy())]
        widths = [max(map(len, column)) for column in zip(*lines)]
        lines.insert(1, ["-" * width for width in widths])
        made += ["| " + " | ".join(c.ljust(width) for c, width in zip(line, widths)) + " |" for line in lines]
        made.append("")
    return [*made, *(line for note in block.notes for line in (note, ""))]


def _cell(word: object) -> str:
    return str(word).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _latex(block: Block) -> str:
    notes = " ".join(_tex(note) for note in block.notes)
    if block.cells.empty:
        return notes + "\n"
    cells = block.cells.map(_tex).rename(columns=_tex)
    caption = f"{_tex(block.title)}. {notes}"
    return cells.style.hide(axis="index").to_latex(
        hrules=True, position="tbp", caption=caption, column_format="l" * len(cells.columns)
    )


def _tex(word: object) -> str:
    """Words as LaTeX prints them; minus signs as such."""
    return re.sub(r"(?<![\w-])([-+])(?=\d)", r"$\1$", str(word).translate(TEX))
