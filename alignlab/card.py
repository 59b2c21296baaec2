"""The card of an adapter, or of an export: README.md beside it, filled from the files of its run. Each section is a function of
SECTIONS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from alignlab.evaluation.safe_range import read_range
from alignlab.files import write_whole
from alignlab.tracking.ledger import CARD, ENVIRONMENT, REPORT, Ledger
from alignlab.tuners.engines import CONFIG

PEFTS_OWN = frozenset({"LORA", "IA3", "PREFIX_TUNING", "PROMPT_TUNING"})
"""Types of adapters that PEFT loads without alignlab."""
NOT_SETTINGS = ("name", "likelihood_rate", "preference_rate")
"""Keys of a method and a tuner that a card leaves out: a stage's rate is the one that was used."""
AUTO = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
}
"""By PEFT's type of task, the class of transformers that loads a base."""
DIAL = (
    "At strength 0 the base answers, at 1 the adapter as it was trained; between them and beyond 1 its effect is scaled:"
    " `model.generate(**inputs, custom_generate=alignlab.at_strength(model, 0.5))`. A whole run, with its template, is"
    ' loaded by `alignlab.load("RUN")`.'
)
WITHOUT_DIAL = (
    "PEFT reads the vectors before a text at their full effect; at any strength answers the whole run, loaded by"
    ' `alignlab.load("RUN")`.'
)
POSITIONS = (
    "PEFT counts the vectors as positions. Its forward says what was measured here where `position_ids` are given, lowered by"
    " `num_virtual_tokens` (of an encoder-decoder model it says something else); at any strength answers the whole run,"
    ' loaded by `alignlab.load("RUN")`.'
)
NOTES = {"PREFIX_TUNING": POSITIONS, "PROMPT_TUNING": WITHOUT_DIAL}
"""By the type of an adapter, what is said of its strength, where it is not DIAL."""
OURS = "Apache-2.0"
"""The licence of the embedded models."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in `folder`, and the `run` that has trained it."""

    folder: Path
    run: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """What PEFT reads."""
        return Ledger(self.folder).found(CONFIG)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The run's config; of a folder that is no run, empty."""
        return Ledger(self.run).found("config.json")

    @cached_property
    def report(self) -> dict[str, Any]:
        """The run's report; empty before there is one."""
        return Ledger(self.run).found(REPORT)

    @property
    def base(self) -> str:
        """The name of the model below it, or the relative path to a trained one."""
        return str(self.config.get("base_model_name_or_path") or self.settings.get("model", {}).get("path") or "not known")

    def chosen(self, group: str) -> str:
        """The choice of a config group."""
        return str(self.settings.get(group, {}).get("name", "not known"))


def write_cards(run: Path) -> list[Path]:
    """Writes the card of every adapter that the stages of a run have left; returns their paths."""
    adapters = sorted(path.parent for path in run.glob(f"stages/*/result/**/{CONFIG}"))
    return [write_card(folder, run) for folder in adapters]


def write_card(folder: Path, run: Path) -> Path:
    """Writes the card of one adapter, in the place of PEFT's empty form."""
    write_whole(folder / CARD, card_of(Adapter(folder, run)))
    return folder / CARD


def write_export_card(folder: Path, adapter: Adapter, written: str, library: str, use: str) -> Path:
    """Writes the card of an export of the run. `written`: its form, strength and dtype; `library`: what loads it; `use`: how,
    {auto} standing for the class of transformers."""
    head = yaml.safe_dump(_head(adapter) | {"library_name": library}, sort_keys=False, allow_unicode=True)
    told = f"{_title(adapter)}\n\nAn export ({written}) of the run that is told here: {_about(adapter)}"
    parts = [told, f"## Use\n\n{use.format(auto=_auto(adapter))}", strengths(adapter), training(adapter), results(adapter)]
    write_whole(folder / CARD, f"---\n{head}---\n" + "\n\n".join(filter(None, parts)) + "\n")
    return folder / CARD


def card_of(adapter: Adapter) -> str:
    """The whole card: what the hub reads, and the sections that have anything to say."""
    head = yaml.safe_dump(_head(adapter), sort_keys=False, allow_unicode=True)
    written = [text for section in SECTIONS if (text := section(adapter))]
    return f"---\n{head}---\n" + "\n\n".join(written) + "\n"


def _head(adapter: Adapter) -> dict[str, Any]:
    licence = licence_of(adapter)
    tags = dict.fromkeys(("alignlab", adapter.chosen("method"), adapter.chosen("tuner")))
    is_place = adapter.base.startswith((".", "/"))
    return {
        **({} if is_place else {"base_model": adapter.base}),
        "library_name": "peft",
        **({"license": licence} if licence else {}),
        "tags": list(tags),
    }


def licence_of(adapter: Adapter) -> str | None:
    """The licence that the base's own card names, where that card is on this machine; of an embedded model, alignlab's."""
    model = adapter.settings.get("model", {})
    if model.get("source") == "embedded":
        return OURS
    place = Path(str(model.get("path"))) / CARD
    if model.get("source") == "hub":
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(str(model.get("path")), CARD, revision=model.get("revision"))
        place = Path(found) if isinstance(found, str) else place
    try:
        _, begun, rest = place.read_text(encoding="utf-8").partition("---\n")
        head = yaml.safe_load(rest.partition("\n---")[0]) if begun else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    named = head.get("license") if isinstance(head, Mapping) else None
    return str(named) if isinstance(named, str) else None


def about(adapter: Adapter) -> str:
    """What it is."""
    return f"{_title(adapter)}\n\nAn adapter {_about(adapter)}"


def _title(adapter: Adapter) -> str:
    return "# " + "-".join(adapter.chosen(group) for group in ("method", "tuner", "model", "data"))


def _about(adapter: Adapter) -> str:
    parameters = adapter.report.get("parameters", {})
    size = f" It has {parameters['learned']:,} parameters; the base has {parameters['all']:,}." if parameters else ""
    licence = licence_of(adapter)
    law = f"licence {licence}" if licence else "whose licence is not known here: see its own card"
    what = f"`{adapter.chosen('tuner')}`, trained by `{adapter.chosen('method')}` on data `{adapter.chosen('data')}`"
    return f"{what}, with seed {adapter.settings.get('seed')}.{size} Its base is `{adapter.base}`, {law}."


def _auto(adapter: Adapter) -> str:
    return AUTO.get(str(adapter.config.get("task_type") or "CAUSAL_LM"), "AutoModel")


def use(adapter: Adapter) -> str:
    """How it is loaded, and its strength set."""
    kind, model = str(adapter.config.get("peft_type")), adapter.settings.get("model", {})
    auto = _auto(adapter)
    imports = ["from peft import PeftModel", f"from transformers import {auto}"]
    place = f'"{adapter.base}"'
    notes: list[str] = []
    if kind not in PEFTS_OWN:
        imports += ["import alignlab  # after peft"]
        notes += [f"PEFT knows the type {kind} after `import alignlab`; without it, loading ends with `KeyError: '{kind}'`."]
    if adapter.base.startswith("."):
        notes += ["The base is the checkpoint at this path from here, which the same run has fine-tuned."]
    elif model.get("source") == "embedded":
        imports += ["from alignlab.models.config import EMBEDDED"]
        place = f'EMBEDDED / "{model["path"]}"'
    elif model.get("source") == "folder":
        place = f'"FOLDER OF {adapter.base}"'
    notes += [NOTES.get(kind, DIAL)]
    code = [*imports, "", f"base = {auto}.from_pretrained({place})"]
    code += ['model = PeftModel.from_pretrained(base, "FOLDER OF THIS CARD")']
    return "\n".join(["## Use", "", "```python", *code, "```", "", "\n\n".join(notes)])


def training(adapter: Adapter) -> str:
    """Method, data and settings."""
    settings, rows = adapter.settings, adapter.report.get("rows", {})
    if not settings:
        return ""
    of_method = {
        key: value
        for key, value in settings.get("method", {}).items()
        if key in rows or not (isinstance(value, Mapping) and "batch" in value)  # a stage that was not asked for
    }
    given = {"method": of_method, "tuner": settings.get("tuner", {})}
    lines = [f"| {key} | {value} |" for group, values in given.items() for key, value in _flat(group, values)]
    read = [f"- {name}: {account['kept']:,} of {account['read']:,} rows kept" for name, account in rows.items()]
    packages = Ledger(adapter.run).found(ENVIRONMENT).get("packages", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    parts = ["## Training", "\n".join(["| setting | value |", "|---|---|", *lines]), "\n".join(read)]
    return "\n\n".join([*filter(None, parts), *([f"Made with {versions}."] if versions else [])])


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each setting with its whole key; what is null or a place says nothing."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}.{key}", value)
        elif key not in NOT_SETTINGS and value is not None and not (isinstance(value, str) and "/" in value):
            yield f"{prefix}.{key}", json.dumps(value, ensure_ascii=False).strip('"').replace("|", "\\|")


def results(adapter: Adapter) -> str:
    """What the run has measured: metrics down, strengths or classes across, each value with its 95 % interval."""
    rows = adapter.report.get("results", [])
    if not rows:
        return ""
    dialled = len({row["control"] for row in rows}) == 1
    points = [f"{row['strength']:g}" if dialled else f"{row['control']} {row['strength']:g}" for row in rows]
    across = list(dict.fromkeys(points))
    cells: dict[tuple[str, str], str] = {}
    for row, point in zip(rows, points, strict=True):
        interval = "" if row["low"] is None or row["high"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        cells[f"{row['suite']}/{row['metric']} (n = {row['n']})", point] = f"{row['value']:.3f}{interval}"
    down = dict.fromkeys(name for name, _ in cells)
    head = f"| metric, at {'strength' if dialled else 'class and strength'} | {' | '.join(across)} |"
    lines = [f"| {name} | {' | '.join(cells.get((name, point), '-') for point in across)} |" for name in down]
    note = "Each value with its 95 % interval, where there is one."
    return "\n".join(["## Results", "", head, "|---" * (len(across) + 1) + "|", *lines, "", note])


def strengths(adapter: Adapter) -> str:
    """The range of strengths in which it was seen to hold."""
    safe = read_range(adapter.folder)
    return "" if safe is None else f"## Strengths\n\n{safe.sentence[0].upper()}{safe.sentence[1:]}."


SECTIONS: list[Callable[[Adapter], str]] = [about, use, strengths, training, results]
"""In their order; one that has nothing to say returns an empty text."""
