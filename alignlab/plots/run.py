"""Figures of one run, from its ledger and its rows; and what all figures share: panels, colours, legend, file formats."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError
from alignlab.evaluation import METRICS, is_share
from alignlab.evaluation.config import WATCHED
from alignlab.files import replaced_alone
from alignlab.tracking.ledger import Ledger

if TYPE_CHECKING:
    from alignlab.evaluation.report import Row

WIDTH, HEIGHT = 4.2, 3.2
"""Inches of one panel."""
DOTS = 130
"""Per inch."""
FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, without its yellow, which is hard to see on white."""
MARKERS, DASHES = "osD^vP", ("-", "--", ":")
SILENT = dict.fromkeys(("Creator", "Date", "Format", "Type"))
SMALL = 7
"""Font size of a legend in points."""
LETTERS = 15
"""Of a legend to an inch."""
FAINT = 0.35
"""Opacity of the raw curve behind a smoothed one."""
FEW = 24
"""Fewer values than these are not smoothed."""
SMALLEST_SPAN = 0.5
"""Of the vertical axis of metrics against strength, so that a change within the noise does not look like a fall."""


def draw_curves(ledger: Ledger, path: Path) -> Path:
    """One panel per stage with loss against optimiser step, smoothed, and one per validation metric of a stage."""
    losses, measured = losses_of(ledger), validation_of(ledger)
    curves = [(stage, "loss", points) for stage, points in sorted(losses.items())]
    curves += [(stage, metric, points) for (stage, metric), points in sorted(measured.items())]
    figure, drawn = panels(max(1, len(curves)))
    for panel, (stage, metric, points) in zip(drawn, curves, strict=False):
        steps, values = zip(*sorted(points), strict=True)
        whole_steps(panel)
        if (stage, metric) in measured:
            panel.plot(steps, values, linewidth=1.2, marker="o", markersize=3, clip_on=False, label="measured on the way")
            end_at_one(panel, any(is_share(suite, metric) for suite in METRICS))
        else:
            over = smoothed_over(len(values))
            if over > 1:
                panel.plot(steps, values, linewidth=0.8, alpha=FAINT, color=COLOURS[0], label="each line logged")
            named = f"mean over {over} of them" if over > 1 else "as logged"
            panel.plot(steps, smoothed(values, over), linewidth=1.4, color=COLOURS[0], label=named)
        panel.set(title=stage, xlabel="optimiser step", ylabel=metric.replace("_", " "))
    if curves:
        legend(figure, drawn)
    return saved(figure, path)


def smoothed_over(count: int) -> int:
    """How many of so many values a smoothed curve averages: an odd number, about a sixth; 1 where there are few."""
    return 1 if count < FEW else 2 * (count // 12) + 1


def smoothed(values: Sequence[float], over: int) -> list[float]:
    """The running mean over so many values around each, near the ends over those that there are."""
    half = over // 2
    around = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    return [math.fsum(each) / len(each) for each in around]


def whole_steps(panel: Any) -> None:
    """The horizontal axis counts, and has no fractions."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def end_at_one(panel: Any, share: bool) -> None:
    """The vertical axis of a share goes beyond 1 or 0 only where its numbers do."""
    if share:
        low, high = panel.get_ylim()
        panel.set_ylim(max(min(0.0, panel.dataLim.ymin), low), min(max(1.0, panel.dataLim.ymax), high))


def losses_of(ledger: Ledger) -> dict[str, list[tuple[int, float]]]:
    """From stage to its losses, each with its optimiser step."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in ledger.history():
        for key, value in entry.items():
            if key.endswith("/loss"):
                curves[key.removesuffix("/loss")].append((entry["step"], value))
    return curves


def validation_of(ledger: Ledger) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """From stage and metric to the metric's values while the stage trained, each with its optimiser step."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for entry in ledger.history():
        for key, value in entry.items():
            stage, found, metric = key.partition("/validation/")
            if found:
                curves[stage, metric].append((entry["step"], value))
    return curves


def draw_dial(rows: Sequence[Row], path: Path) -> Path:
    """The first metric against strength, with intervals, and beside it what it costs; where no cost was measured, the second
    metric of the same suite."""
    metrics = list(dict.fromkeys((row.suite, row.metric) for row in rows if row.suite == rows[0].suite))[:2]
    cost = cost_among(rows)
    if cost:
        metrics = [metrics[0], cost]
    figure, drawn = panels(len(metrics))
    for panel, metric in zip(drawn, metrics, strict=True):
        chosen = sorted((row for row in rows if (row.suite, row.metric) == metric), key=lambda row: row.strength)
        strengths = [row.strength for row in chosen]
        values = [row.value for row in chosen]
        ends = [[math.nan if end is None else end for end in (row.low, row.high)] for row in chosen]
        if any(math.isfinite(end) for pair in ends for end in pair):
            panel.fill_between(strengths, *zip(*ends, strict=True), alpha=0.2, linewidth=0, label="95 % interval")
        panel.plot(strengths, values, marker="o", clip_on=False, label="value")
        title = "/".join(metric)
        better = "" if WATCHED.get(title, 1) > 0 else ", lower is better"
        named = f"{metric[1].replace('_', ' ')}{better}"
        panel.set(title=f"{title} (n = {chosen[0].n})", xlabel="strength", ylabel=named)
        low, high = panel.get_ylim()
        missing = max(0.0, SMALLEST_SPAN - (high - low)) / 2
        panel.set_ylim(low - missing, high + missing)
        end_at_one(panel, is_share(*metric))
        panel.axvline(1.0, linewidth=0.8, linestyle=":", color="grey", label="as trained (strength 1)")
    legend(figure, drawn)
    return saved(figure, path)


def cost_among(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Suite and metric that say what becomes of the backbone, other than the first metric; None where none was measured."""
    found = dict.fromkeys((row.suite, row.metric) for row in rows)
    watched = (tuple(name.split("/")) for name in WATCHED)
    others = list(found)[1:]
    return next(((suite, metric) for suite, metric in watched if (suite, metric) in others), None)


def draw_profile(profile: Mapping[str, Any], path: Path) -> Path:
    """The measurements of a stage that only measures: a panel for each series against the same axis."""
    axis = profile["x"]
    figure, drawn = panels(len(profile["series"]))
    for panel, (name, values) in zip(drawn, profile["series"].items(), strict=True):
        shown = [math.nan if value is None else value for value in values]
        panel.plot(axis["values"], shown, marker="o", clip_on=False)  # a marker at the edge is drawn whole
        panel.set(title=name, xlabel=axis["label"])
        panel.set_ylim(bottom=min(0.0, *(value for value in values if value is not None)))
        panel.set_xticks(axis["values"])
    figure.suptitle(profile["title"], fontsize="medium")
    return saved(figure, path)


def draw_counts(counts: Mapping[str, Any], path: Path) -> Path:
    """What the texts of each task chose: a line per task, a column per vector, dark where all of its texts chose it."""
    import numpy as np

    tasks = list(counts["counts"])
    share_TN = np.array([[count / counts["texts"][task] for count in counts["counts"][task]] for task in tasks])
    figure, (panel,) = panels(1, width=WIDTH * 2, height=max(1.5, 0.3 * len(tasks) + 1))
    image = panel.imshow(share_TN, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    panel.grid(visible=False)
    panel.set(title=counts["title"], xlabel="number of the vector")
    panel.set_yticks(range(len(tasks)), tasks)
    figure.colorbar(image, ax=panel, label="share of the texts")
    return saved(figure, path)


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


def legend(figure: Any, drawn: Sequence[Any], title: str = "") -> None:
    """The legend of all panels' lines below them, each label once, for which the figure grows; `title` explains lines and
    bands."""
    handles: dict[str, Any] = {}
    for panel in drawn:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = list(handles)
    width, height = figure.get_size_inches()
    title = "\n".join(fill(line, int(width * LETTERS)) for line in title.split("\n"))
    longest = max([len(label) for label in labels], default=1)
    columns = max(1, min(len(labels), int(width * 14 / (longest + 8))))
    lines = -(-len(labels) // columns) + bool(title) + title.count("\n")
    figure.set_size_inches(width, height + 0.17 * lines)
    figure.legend(
        list(handles.values()),
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=SMALL,
        title=title,
        title_fontsize=SMALL,
        frameon=False,
    )


def saved(figure: Any, path: Path) -> Path:
    """Writes the picture in the format of its suffix. Raises ConfigError for a suffix that is none of FORMATS."""
    from matplotlib import rc_context

    refuse_other_formats(path)
    _as_written(figure)
    form = path.suffix[1:]
    # The same numbers make the same file: no date, and names inside an SVG that do not change.
    with rc_context({"svg.hashsalt": "alignlab"}), replaced_alone(path) as unfinished:
        figure.savefig(unfinished, format=form, dpi=DOTS, metadata=SILENT if form == "svg" else None)
    return path


def _as_written(figure: Any) -> None:
    """Names of runs and settings are shown as they are: two dollar signs make no formula. Numbers along an axis may be one."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter

    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    numbered = [axis for axis in axes if not isinstance(axis.get_major_formatter(), FixedFormatter)]
    numbers = {id(label) for axis in numbered for label in axis.get_ticklabels(which="both")}
    for label in figure.findobj(Text):
        if id(label) not in numbers:
            label.set_parse_math(False)


def refuse_other_formats(path: Path, known: Sequence[str] = FORMATS) -> None:
    """Raises ConfigError for the suffix of another format."""
    if path.suffix not in known:
        raise ConfigError(f"--to {path}: pictures end in {', '.join(known)}.")
