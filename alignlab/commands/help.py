"""What `alignlab run --help` prints, and what the shell completes, both read from the configs without composing them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from alignlab.command_line import (
    CONF,
    EXPERIMENT,
    SCALE,
    SCALES,
    TOY,
    asks_for_config,
    expand_overrides,
    experiment_folders,
    experiments_in,
    own_configs,
    program,
    rows_of,
    run_command,
    swept_keys,
)
from alignlab.errors import ConfigError

GROUP = re.compile(r"^  - (\w+): (\w+) +# (.*)$", re.MULTILINE)
KEY = re.compile(r"^(\w+): (\S+) +# (.*)$", re.MULTILINE)
"""The lines of run.yaml that the help shows: a group with its default, a key with its default, and what each means."""
EXAMPLES = (
    ("", "method=red on the embedded world: a table and a picture in a minute, without a GPU"),
    ("method=dpo tuner=red seed=1", "pairs, another tuner, another seed"),
    ("method=dpo model=local model.path=MODEL data=jsonl data.path=FOLDER", "your model and your pairs"),
    ("-m method=red tuner=red,lora seed=0,1,2", "a sweep: six runs"),
    ("experiment=clm/table1 scale=toy", "a paper's table, at the scale of the embedded world"),
    ("experiment=clm/table1/dpo seed=0", "one of its rows"),
    ("... scale=smoke", "the same, cut to seconds, to see that it goes through"),
    ("... plan=true", "only says what would be done"),
    ("... --cfg job", "only shows the config"),
    ("... --config-dir FOLDER", "with configs and experiments of yours, in a folder laid out as conf/"),
)


def usage() -> str:
    """The text of --help."""
    text = (CONF / "run.yaml").read_text(encoding="utf-8")
    name = program()
    lines = [f"usage: {name} [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]", ""]
    lines += ["Trains, evaluates and reports a run; with -m, or with the experiment of a table, a sweep of runs.", ""]
    for words, meaning in EXAMPLES:
        lines += [f"  {name} {words}".rstrip(), f"      {meaning}"]
    lines += ["", "groups (GROUP=CHOICE)", ""]
    for group, default, meaning in GROUP.findall(text):
        lines += [f"{group}: {', '.join(choices(group))}", f"    {meaning}; default: {default}"]
    lines += ["", "experiments (experiment=NAME; NAME/ROW is one row of a table)", ""]
    lines += [f"{home}: {', '.join(tables)}" for home, tables in _tables()]
    lines += ["", "keys (KEY=VALUE; docs/options.md has all, --cfg job those of a run)", ""]
    lines += [f"{key}={default}: {meaning}" for key, default, meaning in KEY.findall(text)]
    lines += [
        "",
        f'eval "$({name} -sc install=bash)" completes words in this shell (zsh and fish likewise). --hydra-help: Hydra.',
    ]
    return "\n".join(lines) + "\n"


def note_on_config(words: Sequence[str]) -> str:
    """A line beside the config of an experiment that sweeps: the keys that its jobs set, and the command that shows the config
    of the first; "" for any other, and where the words give all of them."""
    name = next((word.removeprefix(EXPERIMENT) for word in words if word.startswith(EXPERIMENT)), "")
    file = experiments_in(experiment_folders()).get(name)
    given = {word.partition("=")[0].lstrip("+") for word in words}
    left = [key for key in (swept_keys(file) if file else {}) if key.lstrip("+") not in given]
    if not left:
        return ""
    from alignlab.commands.params import first_values

    first = [f"{key}={values[0]}" for key, values in first_values(name).items() if key in left and values]
    option = next((place for place, word in enumerate(words) if asks_for_config([word])), len(words))
    command = run_command([*words[:option], *first, *words[option:]])
    return (
        f"note: {EXPERIMENT}{name} is a sweep: its jobs set {', '.join(left)}, which this config does not show; that of the"
        f" first: {command}\n"
    )


def choices(group: str) -> list[str]:
    """The choices of a config group, the user's own included."""
    return sorted(file.stem for folder in (CONF, *own_configs()) for file in (folder / group).glob("*.yaml"))


def _tables() -> Iterator[tuple[str, list[str]]]:
    """From each home of experiments to those in it that are sweeps, those of the embedded world as toy/NAME."""
    homes: dict[str, list[str]] = {}
    for name, file in experiments_in(experiment_folders()).items():
        home, _, table = name.partition("/")
        if table.removeprefix(f"{TOY}/").count("/") == 0 and "sweeper:" in file.read_text(encoding="utf-8"):
            homes.setdefault(home, []).append(table or home)
    yield from sorted(homes.items())


def complete(commands: Iterable[str]) -> bool:
    """Answers a shell that asks by COMP_LINE what its last word can become. False where Hydra has to say it: then COMP_LINE
    holds the words as Hydra reads them."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    last = "" if line[-1:].isspace() or not words else words.pop()
    called = 2 if words and Path(words[0]).name.startswith("python") else 1
    before = words[called:]
    if called == 1 and not before:
        return _answer(commands, last)
    if called == 1 and before.pop(0) != "run":
        return True
    if last.startswith(EXPERIMENT):
        return _answer(_experiments(last.removeprefix(EXPERIMENT)), last)
    if last.startswith(SCALE):
        return _answer([f"{SCALE}{scale}" for scale in SCALES], last)
    text = (CONF / "run.yaml").read_text(encoding="utf-8")
    groups, keys = ([found[0] for found in pattern.findall(text)] for pattern in (GROUP, KEY))
    group, _, _ = last.partition("=")
    if "=" in last and group in groups:
        return _answer([f"{group}={choice}" for choice in choices(group)], last)
    if "." not in last and "=" not in last:
        ends = [f"{key}=" for key in (*groups, *keys)] + [f"{group}." for group in groups]
        return _answer([*ends, EXPERIMENT], last)
    try:
        before = expand_overrides(before)
    except ConfigError:
        before = []
    os.environ["COMP_LINE"] = " ".join(["alignlab", *before, last])
    return False


def _experiments(begun: str) -> list[str]:
    """How the name of an experiment can go on, up to the next slash."""
    files = experiments_in(experiment_folders())
    table, _, _ = begun.rpartition("/")
    names = list(files)
    if table in files and (folder := rows_of(files[table])):
        names += [f"{table}/{row.rpartition('/')[2]}" for row in files if row.rpartition("/")[0] == folder]
    depth = begun.count("/") + 1
    ends = ("/".join(parts[:depth]) + ("/" if len(parts) > depth else "") for name in names if (parts := name.split("/")))
    return [f"{EXPERIMENT}{end}" for end in sorted(set(ends))]


def _answer(candidates: Iterable[str], last: str) -> bool:
    sys.stdout.write(" ".join(each for each in candidates if each.startswith(last)) + "\n")
    return True
