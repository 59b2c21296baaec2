"""Writes docs/options.md, every option of conf/ with its type, values and meaning: python docs/options.py

The values and meanings are those of the YAML files, whose comment at the end of a line says what the line's option means; the
types are those of the dataclasses that the registries of alignlab/config.py name. A file without a group, such as
conf/_data.yaml, is the base of the choices that name it in their defaults.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from alignlab.config import GROUPS, TopConfig  # noqa: E402
from alignlab.evaluation import METRICS  # noqa: E402
from alignlab.registry import ANY, Allowed  # noqa: E402
from alignlab.training.config import FitConfig  # noqa: E402

CONF = ROOT / "conf"
PAGE = Path(__file__).with_name("options.md")
STAGES = """### Training stages

Every stage of a method that trains has these options: `STAGE` is its name, such as `fit` or `prefer`."""
MEANINGS = {
    "method.beta": "weight of the reference in the preference loss",
    "method.alpha": "how far hidden states are moved along the difference",
    "method.coin_seed": "seed of the coin that picks a response",
    "method.beyond": "blocks with a LoRA above the highest layer that is aligned",
    "method.layers": "the layers whose hidden states are aligned: their numbers, or from and to as fractions of the depth",
    "method.stages": "the stages that run, in order",
    "method.control_rate": "learning rate of the control while the model is trained with it; null = the control is not trained",
    "method.variants": "rows of values that go together; `method.variant` names one (conf/method/rahf.yaml)",
    "method.presets": "likewise, of `method.preset`",
    "method.prefixes": "texts that ask for a good and for a bad answer",
    "method.part": "rm | ppo: the half that is trained on; null = both",
    "tuner.likelihood_rate": "learning rate under likelihood losses",
    "tuner.preference_rate": "learning rate under preference losses",
    "tuner.targets": "the modules that the tuner changes",
    "tuner.rank": "rank of the update",
    "tuner.alpha": "the update is scaled by alpha / rank",
    "tuner.dropout": "dropout in front of the update",
    "tuner.count": "how many blocks are trained",
    "tuner.blocks": "how many blocks are added in front of the first",
    "tuner.below": "a LoRA goes into the blocks that these layers depend on",
    "tuner.beyond": "blocks with a LoRA above those",
    "model.path": "a name on the hub, a folder, or the name of an embedded model",
    "data.path": "the local folder of the files",
    "data.train": "pattern of the files of the training split",
    "data.test": "pattern of the files of the test split",
    "data.frame": "how a prompt is made of a row",
    "data.records": "rows of the training split, for estimates",
    "data.revision": "a commit hash or branch of the hub; null = the newest",
    "data.unusable_pairs": "error | drop, counted: what happens to a row that cannot be used",
    "data.test_share": "fraction of the training rows that is held out where `test` names no other file",
    "control.length": "vectors per class",
    "control.init": "text (embeddings of the phrase, repeated or cut) | vocabulary (drawn) | random",
    "control.strengths": "strengths to measure at; for two classes, mixtures: s first + (1 - s) second",
}
"""Of options whose comment in the YAML files says where a value is from; the comment then stands behind the value."""
HEAD = """# Options

Every option of `python run.py`. `python docs/options.py` writes this page from `conf/`; do not edit it.

`KEY=VALUE` on the command line sets an option, `GROUP=CHOICE` chooses a config, and `python run.py --cfg job` shows the result.
The column `value` has the default. Where choices differ, each is named in front of its value. `${KEY}` is the value of another
key. A number is finite, and at most 2^53 in size where no other bounds stand here; a value outside its range is refused.
"""


@dataclass
class Option:
    """A key: its type, what it means, and its value in each file that sets it."""

    type: str = ""
    meaning: str = ""
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A key of a YAML file, its value as it is written, and the comment behind it."""

    key: str
    value: str
    comment: str


def page() -> str:
    """The page as it should be."""
    parts = [HEAD, _table("## The run", _run())]
    for group, registry in GROUPS.items():
        options = _group(group, {name: entry.config for name, entry in registry.items()})
        default = _default(group)
        choices = ", ".join(f"`{name}`{' (default)' if name == default else ''}" for name in sorted(_choices(group)))
        stages = {key: option for key, option in options.items() if key.startswith(f"{group}.STAGE.")}
        parts.append(_table(f"## {group}\n\n`{group}=` {choices}.", {k: o for k, o in options.items() if k not in stages}))
        if stages:
            parts.append(_table(STAGES, stages))
        if group == "evaluation":
            rows = "\n".join(f"| `{suite}` | {', '.join(f'`{name}`' for name in names)} |" for suite, names in METRICS.items())
            parts.append(f"| suite | metrics |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _run() -> dict[str, Option]:
    """The options that are in no group."""
    hints = _hints(TopConfig)
    lines = [line for line in _lines(CONF / "run.yaml", hints) if not line.key.startswith(("defaults", "hydra"))]
    return {line.key: Option(_named(hints[line.key]), _meaning(line.key, line.comment), {"": line.value}) for line in lines}


def _group(group: str, schemas: Mapping[str, type]) -> dict[str, Option]:
    """The options of all choices of a group: those of shared bases first, each with the values that differ from its base."""
    files = _choices(group)
    hints: dict[str, Any] = {}
    for schema in schemas.values():
        hints = _hints(schema) | hints
    used: dict[Path, list[str]] = {}
    for name, file in files.items():
        for base in {*_bases(file)}:
            used.setdefault(base, []).append(name)
    options: dict[str, Option] = {}
    stage = CONF / "_fit.yaml"
    if stage in used:
        _merge(options, _of_file(stage, f"{group}.STAGE", {}), "", {})
    most = max(map(len, used.values()), default=0)
    shared = [base for base in used if base != stage and (base.parent == CONF or len(used[base]) == len(files) - 1)]
    for base in sorted(shared, key=lambda base: -len(used[base])):
        _merge(options, _of_file(base, group, hints), "" if len(used[base]) == most else ", ".join(sorted(used[base])), hints)
    for name, file in sorted(files.items()):
        if file not in shared:
            _merge(options, _of_file(file, group, hints), name, hints)
    for key, option in options.items():
        option.type = _named({**hints, **_hints(FitConfig, "STAGE")}.get(key.removeprefix(f"{group}."), Any))
    options.pop(f"{group}.name", None)
    return options


def _merge(options: dict[str, Option], more: dict[str, Option], label: str, hints: Mapping[str, Any] | None = None) -> None:
    """Adds what one file sets, under a label in front of its values; what a stage sets goes to the options of all stages."""
    for key, option in more.items():
        group, _, name = key.partition(".")
        stage, _, rest = name.partition(".")
        name = label
        if hints and rest and hints.get(stage) is FitConfig:
            key, name = f"{group}.STAGE.{rest}", f"{label} {stage}".strip()
        known = options.setdefault(key, Option())
        meaning = known.meaning or _meaning(key, option.meaning)
        note = "" if option.meaning == meaning else option.meaning
        known.meaning = meaning
        (value,) = option.values.values()
        if value != "???":
            known.values[name] = f"{value} ({note})" if note else value


def _meaning(key: str, comment: str) -> str:
    return MEANINGS.get(key, comment)


def _choices(group: str) -> dict[str, Path]:
    return {file.stem: file for file in (CONF / group).glob("*.yaml")}


def _default(group: str) -> str | None:
    defaults: list[Any] = yaml.safe_load((CONF / "run.yaml").read_text(encoding="utf-8"))["defaults"]
    return next((entry[group] for entry in defaults if group in entry), None)


def _bases(file: Path) -> Iterator[Path]:
    """The files that a file is laid over, lowest first."""
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            name = entry.partition("@")[0]
            base = CONF / f"{name[1:]}.yaml" if name.startswith("/") else file.parent / f"{name}.yaml"
            yield from _bases(base)
            yield base


def _of_file(file: Path, prefix: str, hints: Mapping[str, Any]) -> dict[str, Option]:
    """What a file sets, its own lines only."""
    packaged = "@package _global_" in file.read_text(encoding="utf-8")
    lines = [line for line in _lines(file, hints) if not line.key.startswith(("defaults", "hydra"))]
    keyed = ((line.key if packaged else f"{prefix}.{line.key}", line) for line in lines)
    return {key: Option("", line.comment, {"": line.value}) for key, line in keyed}


def _lines(file: Path, hints: Mapping[str, Any]) -> list[Line]:
    """The keys of a YAML file. A mapping that is written in one line is one key, unless its schema is a dataclass; one
    with keys of its own is one key too, and its value are their names."""
    text = file.read_text(encoding="utf-8")
    written = text.splitlines()

    def walk(node: Any, at: str) -> Iterator[Line]:
        for key, value in node.value:
            name = f"{at}.{key.value}".strip(".")
            if isinstance(value, yaml.MappingNode) and (not value.flow_style or dataclasses.is_dataclass(hints.get(name))):
                hint = _bare(hints.get(name))
                if dict in map(typing.get_origin, (hint, *typing.get_args(hint))):  # rows of the config's own
                    rows = ", ".join(row.value for row, _ in value.value)
                    yield Line(name, f"{{{rows}}}", _comment(written, key.start_mark.line))
                else:
                    yield from walk(value, name)
            else:
                yield Line(name, _shown(text, value), _comment(written, key.start_mark.line))

    node = yaml.compose(text)
    return list(walk(node, "")) if isinstance(node, yaml.MappingNode) else []


def _shown(text: str, node: Any) -> str:
    """A value as it is written, on one line."""
    piece = text[node.start_mark.index : node.end_mark.index]
    pieces = [re.sub(r"\s#\s.*$", "", line) for line in piece.splitlines()]
    return " ".join(" ".join(pieces).removeprefix(">-").split())


def _comment(lines: list[str], number: int) -> str:
    """The comment at the end of a line, and its continuation in the lines below, which hold nothing else."""
    found = re.search(r"\s#\s+(.*)$", lines[number])
    if found is None:
        return ""
    words = [found.group(1)]
    for line in lines[number + 1 :]:
        more = re.fullmatch(r"\s{8,}#\s+(.*)", line)
        if more is None:
            break
        words.append(more.group(1))
    return " ".join(words)


def _hints(schema: type, at: str = "") -> dict[str, Any]:
    """The type of each field of a dataclass, and of the dataclasses in it, by its dotted key."""
    hints: dict[str, Any] = {}
    for each in dataclasses.fields(schema):
        key, hint = f"{at}.{each.name}".strip("."), typing.get_type_hints(schema, include_extras=True)[each.name]
        hints[key] = hint
        for inner in (hint, *typing.get_args(_bare(hint))):
            if dataclasses.is_dataclass(inner):
                hints |= _hints(typing.cast(type, inner), key)
    return hints


def _bare(hint: Any) -> Any:
    """A type without what its values are bound by."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _named(hint: Any) -> str:
    """A type in words, with its bounds or choices."""
    allowed = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Allowed)), ANY)
    if allowed.choices:
        null = " | null" if type(None) in typing.get_args(_bare(hint)) else ""
        several = "list of " if typing.get_origin(_bare(hint)) is list else ""
        return several + " | ".join(allowed.choices) + null
    if allowed.path:
        return _named(_bare(hint)).replace("str", "pattern" if allowed.relative else "path")
    if allowed.bounds:
        return f"{_named(_bare(hint))}, {allowed.bounds}"
    hint = _bare(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " | ".join(_named(each) for each in typing.get_args(hint))
    if hint is type(None):
        return "null"
    inner = typing.get_args(hint)
    if inner:
        return f"{typing.get_origin(hint).__name__}[{', '.join(_named(each) for each in inner)}]"
    return "mapping" if dataclasses.is_dataclass(hint) else str(getattr(hint, "__name__", hint))


def _table(title: str, options: Mapping[str, Option]) -> str:
    rows = [f"| `{key}` | {_cell(o.type)} | {_values(o.values)} | {_cell(o.meaning)} |" for key, o in options.items()]
    return "\n".join([title, "", "| option | type | value | meaning |", "|---|---|---|---|", *rows, ""])


def _values(values: Mapping[str, str]) -> str:
    return _cell("; ".join(f"{label}: {value}" if label else value for label, value in values.items()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
