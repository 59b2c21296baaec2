"""What all figures share: panels side by side, colours that everyone can tell apart, and a legend beside the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError

WIDTH, HEIGHT = 4.2, 3.2
"""Inches of one panel."""
DOTS = 130
"""Per inch."""
FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, without the yellow that is not seen on white."""
MARKERS, DASHES = "osD^vP", ("-", "--", ":")
SILENT = dict.fromkeys(("Creator", "Date", "Format", "Type"))
SMALL = 7
"""Points of a legend's letters; about 15 of them to an inch."""


def panels(count: int, width: float = WIDTH, height: float = HEIGHT) -> tuple[Any, list[Any]]:
    """A figure with panels side by side. `width`, `height`: inches of one panel."""
    # The figure class is used directly: pyplot would pick a display and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    FigureCanvasAgg(figure)
    made = figure.subplots(1, count, squeeze=False)[0]
    for panel in made:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(made)


def styles(count: int) -> list[dict[str, Any]]:
    """A colour, a marker and a dash for each of several lines; no two of the first forty-two are alike."""
    marked = [{"color": colour, "marker": marker} for colour, marker in islice(zip(cycle(COLOURS), cycle(MARKERS)), count)]
    return [{**style, "linestyle": DASHES[place // len(COLOURS) % len(DASHES)]} for place, style in enumerate(marked)]


def legend(figure: Any, panel: Any, title: str) -> None:
    """The legend of a panel's lines below all panels, for which the figure grows; `title` says how lines and bands are read."""
    handles, labels = panel.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    longest = max([len(label) for label in labels], default=1)
    columns = max(1, min(len(labels), int(width * 14 / (longest + 8))))
    lines = -(-len(labels) // columns) + 1 + title.count("\n")
    figure.set_size_inches(width, height + 0.17 * lines)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=SMALL,
        title=title,
        title_fontsize=SMALL,
        frameon=False,
    )


def saved(figure: Any, path: Path) -> Path:
    """Writes the picture in the form that its suffix says. Raises ConfigError for a suffix that is none of FORMATS."""
    from matplotlib import rc_context

    refuse_other_formats(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same numbers make the same file: no date, and names inside an SVG that do not change.
    with rc_context({"svg.hashsalt": "alignlab"}):
        figure.savefig(path, dpi=DOTS, metadata=SILENT if path.suffix == ".svg" else None)
    return path


def refuse_other_formats(path: Path, known: Sequence[str] = FORMATS) -> None:
    """Raises ConfigError for a picture of a form that is not drawn."""
    if path.suffix not in known:
        raise ConfigError(f"--to {path}: pictures end in {', '.join(known)}.")
