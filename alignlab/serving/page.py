"""The dial in a browser: a prompt beside several strengths or a mixture of classes, the run's measured curve, and kept samples
as a comparison that can be downloaded. Importing this module needs Gradio (alignlab[ui])."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from html import escape
from itertools import pairwise
from typing import Any

import gradio as gr
from fastapi import FastAPI

from alignlab.errors import AlignlabError, ControlError
from alignlab.evaluation.safe_range import SafeRange
from alignlab.models.sampling import Sampling
from alignlab.models.strength import AskedStrength, adapters_of
from alignlab.records import NO_CLASS, Turn
from alignlab.serving.engine import Engine, Piece, Reply
from alignlab.serving.ranges import Ranges, named

USER = "alignlab"
"""Who logs in with the server's key, where it has one."""
STRENGTHS = (0.0, 1.0, 1.5)
"""Side by side at first."""
STEP = 0.05
BUTTONS = (("Write", "primary"), ("Stop", "secondary"), ("Keep", "secondary"))
KEPT = {"run": 140, "prompt": 240, "setting": 120, "temperature": 140, "seed": 80, "answer": 440}
"""What is kept of a sample, and how wide it is shown, in pixels."""
FIRST = ("reward", "capability")
"""Metrics that are drawn first."""
PANELS = 4
"""Metrics that are drawn at most."""
WIDE, HIGH, LEFT, BELOW = 320, 130, 44, 22
"""Of a drawing and of the room for its numbers, in pixels."""
WAIT_SECONDS = 0.5

Measured = Sequence[Mapping[str, Any]]
"""Rows of a report."""

DOWNLOAD = """(table) => {
  const quoted = cell => `"${String(cell ?? "").replaceAll('"', '""')}"`;
  const rows = [table.headers, ...table.data].map(row => row.map(quoted).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([rows.join("\\r\\n") + "\\r\\n"], {type: "text/csv"}));
  link.download = "comparison.csv";
  link.click();
}"""
"""Makes a file of the kept samples in the browser; nothing is written on the server."""
CSS = """
.curves { display: flex; flex-wrap: wrap; gap: 12px; }
.curves figure { flex: 1 1 260px; max-width: 420px; margin: 0; }
.curves figcaption { font-size: 13px; }
.curves svg { width: 100%; height: auto; overflow: visible; font-size: 11px; }
.curves .line { stroke: var(--body-text-color); fill: none; stroke-width: 1.5; }
.curves .interval { stroke: var(--body-text-color); opacity: .35; stroke-width: 4; }
.curves .safe { fill: var(--color-accent); opacity: .12; }
.curves .axis { stroke: var(--border-color-primary); }
.curves text, .curves .measured { fill: var(--body-text-color); }
.curves .present { stroke: var(--color-accent); fill: var(--color-accent); stroke-dasharray: 3 3; }
"""


def mount(
    app: FastAPI, engine: Engine, path: str, measured: Mapping[str, Mapping[str, Measured]], key: str | None = None
) -> FastAPI:
    """The server with the page at a path. `measured`: of each model, the rows of each adapter's report, by names as in
    `Ranges`. `key`: what USER logs in with."""
    blocks = page(engine, measured)
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none of the network
    auth = None if key is None else (USER, key)
    return gr.mount_gradio_app(app, blocks, path, auth=auth, theme=theme, css=CSS, footer_links=[], ssr_mode=False)


def page(engine: Engine, measured: Mapping[str, Mapping[str, Measured]]) -> gr.Blocks:
    """A tab per model, and the samples that were kept of any of them."""
    with gr.Blocks(title="alignlab", analytics_enabled=False) as blocks:
        gr.Markdown("# alignlab")
        kept = gr.Dataframe(
            headers=list(KEPT),
            column_widths=[f"{wide}px" for wide in KEPT.values()],
            **{"type": "array", "interactive": False, "wrap": True, "label": "Kept", "render": False},
        )
        for name in engine.policies:
            with gr.Tab(name):
                _tab(engine, name, measured.get(name, {}), kept)
        kept.render()
        with gr.Row():
            gr.Button("Download as CSV").click(None, [kept], None, js=DOWNLOAD)
            gr.Button("Clear").click(lambda: [], None, [kept])
    return blocks


def _tab(engine: Engine, name: str, measured: Mapping[str, Measured], kept: gr.Dataframe) -> None:
    tuner, ranges = engine.policies[name].tuner, engine.ranges.get(name, {})
    controls, adapters = tuner.controls, adapters_of(tuner)
    prompt = gr.Textbox(label="Prompt", lines=3, max_lines=12)
    with gr.Accordion("How tokens are chosen", open=False):
        tokens = gr.Slider(1, engine.limits.new_tokens, min(128, engine.limits.new_tokens), step=1, label="New tokens")
        temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature; 0 is greedy")
        seed = gr.Number(0, precision=0, label="Seed")
    with gr.Row():
        write, stop, keep = (gr.Button(name, variant=kind, min_width=90) for name, kind in BUTTONS)
    settings: Settings
    if controls is None:
        dials, answers = _dials(adapters or (name,), measured, ranges, ends=engine.outside != "warn")
        settings = partial(_strengths, adapters)
    else:
        dials, answers = _mixture(controls.names)
        settings = partial(_mixtures, controls.names)
    draw = partial(_curves, adapters or (name,), measured, ranges)
    curves = gr.HTML(draw(*[dial.value for dial in dials] if controls is None else ()))
    common = [prompt, tokens, temperature, seed, *dials]
    writing = gr.on(
        [write.click, prompt.submit], partial(_written, engine, name, settings), common, answers, concurrency_limit=None
    )
    stop.click(None, cancels=[writing])
    keep.click(partial(_keep, name, settings, len(dials)), [kept, *common, *answers], [kept])
    if controls is None:
        gr.on([dial.change for dial in dials], draw, dials, [curves], show_progress="hidden")


def _dials(
    adapters: Sequence[str], measured: Mapping[str, Measured], ranges: Ranges, *, ends: bool
) -> tuple[list[gr.Slider], list[gr.Textbox]]:
    """Strengths side by side, in each column one of each adapter: over what was measured at least, or, where the safe range
    `ends` them, over that."""
    dials, answers = [], []
    with gr.Row():
        for start in STRENGTHS:
            with gr.Column(min_width=280):
                for name in adapters:
                    label = f"Strength of {name}" if len(adapters) > 1 else "Strength"
                    dials.append(_dial(label, start, measured.get(name, ()), ranges.get(name), ends=ends))
                answers.append(_answer("Answer"))
    return dials, answers


def _dial(label: str, start: float, measured: Measured, safe: SafeRange | None, *, ends: bool) -> gr.Slider:
    points = [row["strength"] for row in measured]
    low, high = min(0.0, *points, 0.0), max(1.5, *points, 1.5)
    if safe is None:
        return gr.Slider(low, high, start, step=STEP, label=label)
    if ends:  # a slider has room for more than one strength, even where it may not be moved
        low, high, start = safe.low, max(safe.high, safe.low + STEP), safe.clamped(start)
    held = (
        f"Seen to hold from {safe.low:g} to {safe.high:g}." if safe.low < safe.high else f"Seen to hold at {safe.low:g} alone."
    )
    return gr.Slider(low, high, start, step=STEP, label=label, info=held, interactive=not ends or safe.low < safe.high)


def _mixture(names: Sequence[str]) -> tuple[list[gr.Slider], list[gr.Textbox]]:
    """A slider per class; the mixture's answer beside that of the model without any."""
    with gr.Row():
        dials = [
            gr.Slider(0, 1, float(place == 0), step=0.05, label=f"Class {name}", min_width=200)
            for place, name in enumerate(names)
        ]
    with gr.Row():
        return dials, [_answer("Answer under the mixture"), _answer("Answer without a class")]


def _answer(label: str) -> gr.Textbox:
    return gr.Textbox(label=label, lines=6, max_lines=16, interactive=False, min_width=280)


Setting = tuple["AskedStrength | None", "dict[str, float] | str | None"]
"""A strength, or classes."""
Settings = Callable[..., "list[Setting]"]
"""From the dials to what is asked, an answer each."""


def _strengths(adapters: Sequence[str], *dials: float) -> list[Setting]:
    """A dial is a strength; where there are several adapters, each takes one after the other."""
    if not adapters:
        return [(strength, None) for strength in dials]
    columns = [dials[start : start + len(adapters)] for start in range(0, len(dials), len(adapters))]
    return [(dict(zip(adapters, column, strict=True)), None) for column in columns]


def _mixtures(names: Sequence[str], *weights: float) -> list[Setting]:
    """The weights as shares of their sum, and no class at all. Raises ControlError where all are 0."""
    if not sum(weights):
        raise ControlError("every class is at 0; give one of them a weight.")
    return [(None, {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}), (None, NO_CLASS)]


def _named(setting: Setting) -> str:
    strength, control = setting
    if isinstance(control, dict):
        return ", ".join(f"{name} {weight:.2g}" for name, weight in control.items() if weight)
    return control or f"strength {named(1.0 if strength is None else strength)}"


def _written(
    engine: Engine, name: str, settings: Settings, prompt: str, tokens: int, temperature: float, seed: int, *dials: float
) -> Iterator[list[str]]:
    """The answers at all settings while they are written, in one batch. To break this off frees the rows."""
    heard: queue.Queue[tuple[int, Piece]] = queue.Queue()
    replies: list[Reply] = []
    try:
        asked = settings(*dials)
        texts, left = [""] * len(asked), set(range(len(asked)))
        for column, (strength, control) in enumerate(asked):
            question = engine.question(
                name,
                [Turn("user", prompt)],
                lambda new: Sampling(new, float(temperature), 1.0),
                strength=strength,
                control=control,
                new_tokens=int(tokens),
                seed=int(seed),
                streams=True,
            )
            if question.warning:
                gr.Warning(question.warning)
            replies.append(engine.ask(question, partial(_hear, heard, column)))
        while left and engine.alive:
            try:
                found = [heard.get(timeout=WAIT_SECONDS)]
            except queue.Empty:
                found = []
            while not heard.empty():
                found.append(heard.get())
            for column, piece in found:
                texts[column] += piece.text if piece.error is None else f"[{piece.error}]"
                if piece.finish or piece.error:
                    left.discard(column)
            yield list(texts)
    except AlignlabError as error:
        raise gr.Error(str(error)) from error
    finally:
        for reply in replies:
            reply.left = True


def _hear(heard: queue.Queue[tuple[int, Piece]], column: int, piece: Piece) -> None:
    heard.put((column, piece))


def _keep(name: str, settings: Settings, count: int, kept: list[list[Any]], *given: Any) -> list[list[Any]]:
    """The kept samples with the present ones behind them."""
    prompt, _, temperature, seed, *rest = given
    dials, answers = rest[:count], rest[count:]
    new = [[name, prompt, _named(each), temperature, seed, text] for each, text in zip(settings(*dials), answers, strict=True)]
    return [row for row in kept if any(row)] + [row for row in new if row[-1]]


def _curves(adapters: Sequence[str], measured: Mapping[str, Measured], ranges: Ranges, *dials: float) -> str:
    """The drawings of each adapter, with its own dials."""
    several = len(adapters) > 1
    return "".join(
        drawn(measured.get(name, ()), dials[place :: len(adapters)], ranges.get(name), name if several else "")
        for place, name in enumerate(adapters)
    )


def drawn(measured: Measured, present: Sequence[float], safe: SafeRange | None = None, adapter: str = "") -> str:
    """A drawing per metric, reward, capability and that of the safe range first: its value over strength with its interval, or
    per class; the present strengths are marked where they are, and on the line, and the range is shaded. `adapter`: whose they
    are, where there are several."""
    names = list(dict.fromkeys(row["metric"] for row in measured if row["n"]))
    first = [*FIRST, *([] if safe is None else [safe.metric.rpartition("/")[2]])]
    order = sorted(names, key=lambda name: first.index(name) if name in first else len(first))
    figures = [
        _figure(name, [row for row in measured if row["metric"] == name and row["n"]], present, safe, adapter)
        for name in order[:PANELS]
    ]
    return f'<div class="curves">{"".join(figures)}</div>'


def _figure(name: str, rows: Measured, present: Sequence[float], safe: SafeRange | None, adapter: str) -> str:
    over = len({row["control"] for row in rows}) == 1
    labels = [f"{row['strength']:g}" if over else str(row["control"]) for row in rows]
    places = [float(row["strength"]) if over else float(number) for number, row in enumerate(rows)]
    marks = list(present) if over else []
    ends = [row[key] for row in rows for key in ("value", "low", "high") if row[key] is not None]
    x, y = _scale([*places, *marks], LEFT, WIDE), _scale(ends, HIGH - BELOW, 8)
    parts = []
    if over and safe is not None:
        low, high = x(safe.low), x(safe.high)
        parts.append(f'<rect class="safe" x="{low:.1f}" y="8" width="{high - low:.1f}" height="{HIGH - BELOW - 8}"/>')
    parts += [f'<line class="axis" x1="{LEFT}" y1="{HIGH - BELOW}" x2="{WIDE}" y2="{HIGH - BELOW}"/>']
    parts += [
        f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>' for value in {min(ends), max(ends)}
    ]
    for row, place, label in zip(rows, places, labels, strict=True):
        parts.append(f'<text x="{x(place):.1f}" y="{HIGH - 6}" text-anchor="middle">{escape(label)}</text>')
        if row["low"] is not None:
            low, high = y(row["low"]), y(row["high"])
            parts.append(f'<line class="interval" x1="{x(place):.1f}" y1="{low:.1f}" x2="{x(place):.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle class="measured" cx="{x(place):.1f}" cy="{y(row["value"]):.1f}" r="3"/>')
    line = sorted((place, row["value"]) for place, row in zip(places, rows, strict=True))
    if over:
        points = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in line)
        parts.append(f'<polyline class="line" points="{points}"/>')
    for mark in marks:
        parts.append(f'<line class="present" x1="{x(mark):.1f}" y1="8" x2="{x(mark):.1f}" y2="{HIGH - BELOW}"/>')
        if (value := _between(line, mark)) is not None:
            parts.append(f'<circle class="present" cx="{x(mark):.1f}" cy="{y(value):.1f}" r="5"/>')
    whose = f"{adapter}: {name}" if adapter else name
    said = f"{escape(whose)} over {'strength' if over else 'classes'}, n = {max(row['n'] for row in rows)}"
    return f'<figure><figcaption>{said}</figcaption><svg viewBox="0 0 {WIDE} {HIGH}" role="img">{"".join(parts)}</svg></figure>'


def _scale(values: Sequence[float], first: float, last: float) -> Any:
    """From values to pixels, with a little room at both ends."""
    low, high = min(values), max(values)
    room = 0.06 * (last - first)
    return lambda value: (
        (first + last) / 2 if high == low else first + room + (value - low) / (high - low) * (last - first - 2 * room)
    )


def _between(line: Sequence[tuple[float, float]], place: float) -> float | None:
    """The value of a line of points at a place, None outside."""
    for (left, one), (right, other) in pairwise(line):
        if left <= place <= right:
            return one if left == right else one + (other - one) * (place - left) / (right - left)
    return None
