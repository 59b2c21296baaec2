"""The command line: short forms of overrides, log lines, and one sentence for every error that the user can correct."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from alignlab.errors import AlignlabError, ConfigError
from alignlab.files import storage_error
from alignlab.registry import nearest, unknown

CONF = Path(__file__).parent / "conf"
"""The configs, in a checkout a link to its folder conf/."""
OWN_CONFIGS = "ALIGNLAB_CONFIGS"
"""The environment variable that names the user's own folders of configs, each laid out as CONF, with a colon between them."""
LONGEST = 300
"""Characters of what another library says in an error."""
PIPED_WIDTH = 140
"""Columns where the output goes to a file."""
EXPERIMENT, SCALE, TOY, SMOKE = "experiment=", "scale=", "toy", "scale=smoke"
SCALES = ("paper", TOY, "smoke")
"""What `scale=` takes: the first two choose the version of an experiment, the last is a key of the run and goes with both."""
ROW = "+experiment/"
"""How a table's config names the folder of its rows."""

NO_PLAN = (
    "plan=true is for one run, or for a sweep by hydra/sweeper=planned: another sweeper, such as hydra/sweeper=search, chooses"
    " its jobs by the results of earlier ones; leave plan=true or the sweeper out."
)


class _Stderr(logging.Handler):
    """Writes to what standard error is when a line comes: whoever replaces or closes it later loses no line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        sys.stderr.write(f"{self.format(record)}\n")


def show_words(level: int) -> None:
    """alignlab's own log lines to stderr; of other libraries, warnings and errors."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    words = logging.getLogger("alignlab")
    words.handlers[:] = [handler]
    words.setLevel(level)
    words.propagate = False


def share_config_store() -> None:
    """Lets Hydra use its store of structured configs where it copies it: once for every group that it lists, as a sweep asks
    for. There is one store per process, and what is read from it is copied then."""
    ConfigStore.__deepcopy__ = lambda store, _memo: store  # type: ignore[attr-defined]


def program() -> str:
    """How this process was called: as the installed command, as the package, or as run.py."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" and called.parent.name == "alignlab":
        return "python -m alignlab run"
    return "alignlab run" if called.name == "alignlab" else "python run.py"


def run_command(words: Iterable[str]) -> str:
    """The line that starts a run or sweep of these words as this process was started: by its program, with the user's own
    folders of configs."""
    folders = [f"--config-dir={folder}" for folder in own_configs()]
    return " ".join([program(), *map(shlex.quote, [*folders, *words])])


def console() -> Console:
    """Standard output, wide enough for a table where it goes to a file."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def sentence(error: Exception) -> str | None:
    """The error as one sentence, or None for a bug of alignlab, whose traceback is shown."""
    if isinstance(error, AlignlabError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, ConfigCompositionException):
        cause = error.__cause__ or error.__context__
        return _unknown_key(cause) if isinstance(cause, OmegaConfBaseException) else _on_one_line(error)
    if told := storage_error(error):
        return str(told)
    if isinstance(error, (ValueError, AssertionError, KeyError, OSError)) and _raised_in(error) in ("omegaconf", "hydra"):
        if isinstance(error, OSError) and error.filename:
            return f"{brief(error.filename)} cannot be made ({error.strerror}); give other folders in the keys of hydra."
        said = _on_one_line(error).rstrip(".") or "Hydra takes no such choice"
        return f"a key on the command line does not fit the configs: {said[:LONGEST]}."
    return _on_one_line(error) if isinstance(error, HydraException) else None


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _raised_in(error: Exception) -> str:
    """The package that has raised it, or that has called the standard library, which has."""
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [name.partition(".")[0] for name in names]
    return next((package for package in reversed(packages) if package not in sys.stdlib_module_names), "")


def _missing_choice(error: MissingConfigException) -> str:
    """A group choice that has no config."""
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    options = sorted(error.options or [])
    if not options:
        return f"no config {error.missing_cfg_file!r}; `{program()} --help` lists the groups."
    close = nearest(name, options)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown {group} {name!r}; {hint}known: {', '.join(options)}."


def _unknown_key(cause: OmegaConfBaseException) -> str:
    """A key that the configs do not have, or a value of the wrong type."""
    key = str(cause.full_key)
    known = _siblings(cause.parent_node)
    if not known or str(cause.key) in known:
        return f"{key}: {str(cause).splitlines()[0]}"
    close = nearest(str(cause.key), known)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown key {key}; {hint}known here: {', '.join(known)}."


def _siblings(node: Any) -> list[str]:
    try:
        return [str(key) for key in node]
    except TypeError:
        return []


def take_config_folders(words: Sequence[str]) -> list[str]:
    """The words without `--config-dir FOLDER`, which joins the folders that OWN_CONFIGS names, for this process and those that
    it starts. Raises ConfigError for a folder that is not there, or that has a config of alignlab's name."""
    rest: list[str] = []
    folders = own_configs()
    left = iter(words)
    for word in left:
        option, _, folder = word.partition("=")
        if option not in ("--config-dir", "-cd"):
            rest.append(word)
            continue
        folder = folder or next(left, "")
        if not folder:
            raise ConfigError("--config-dir needs a folder: --config-dir FOLDER.")
        folders.append(Path(folder).expanduser().absolute())
    for place in folders:
        if not place.is_dir():
            raise ConfigError(f"there is no folder {place} of configs; give one that is laid out as conf/ to --config-dir.")
        for file in sorted(place.rglob("*.yaml")):
            if (CONF / file.relative_to(place)).is_file():
                raise ConfigError(f"{file} has the name of a config of alignlab; give it another.")
    if folders:
        os.environ[OWN_CONFIGS] = os.pathsep.join(dict.fromkeys(map(str, folders)))
    return rest


def own_configs() -> list[Path]:
    """The user's own folders of configs, which lie behind those of alignlab."""
    return [Path(folder).expanduser() for folder in os.environ.get(OWN_CONFIGS, "").split(os.pathsep) if folder]


def shipped(place: str) -> str:
    """The path of what lies among alignlab's configs, for `${shipped:PLACE}` in a config: from the present folder
    where that is above it."""
    path, here = CONF / place, Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def experiment_folders() -> list[Path]:
    """Where experiments are: alignlab's, then the user's own."""
    return [folder / "experiment" for folder in (CONF, *own_configs())]


def experiments_in(folders: Iterable[Path]) -> dict[str, Path]:
    """From the name of each experiment, such as red/table1 or red/table1/lora, to its config."""
    files = ((folder, file) for folder in folders for file in sorted(folder.glob("**/*.yaml")))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for folder, file in files}


def expand_overrides(overrides: Sequence[str], *folders: Path) -> list[str]:
    """The overrides as Hydra reads them: `experiment=red/table1/lora,red` chooses two rows of a table, `scale=toy` its version
    for the embedded world, `scale=toy,smoke` that version cut to seconds, `KEY={a: 1}` adds keys to a mapping. `folders`: of
    the experiments; without any, all that there are.

    Raises ConfigError for an experiment, a row or a scale that does not exist, and for a plan of a sweep that cannot be
    planned, before Hydra makes its folder.
    """
    sweepers = [override.partition("=")[2] for override in overrides if override.startswith("hydra/sweeper=")]
    if sweepers and sweepers[-1] != "planned" and any(override.lower() == "plan=true" for override in overrides):
        raise ConfigError(NO_PLAN)
    given = [override.removeprefix(SCALE).split(",") for override in overrides if override.startswith(SCALE)]
    scales = [scale for words in given for scale in words]
    for scale in scales:
        if scale not in SCALES:
            raise ConfigError(f"scale={scale!r} is not known; choose paper, toy for the embedded world, or smoke for seconds.")
    smoke = [SMOKE] if SMOKE.removeprefix(SCALE) in scales else []  # stays in its place: argparse takes none behind --cfg job
    scale = next((scale for scale in reversed(scales) if scale in SCALES[:2]), SCALES[0])
    asked = any(_is_experiment(override) for override in overrides)
    if scale == TOY and not asked:
        raise ConfigError("scale=toy chooses the version of an experiment for the embedded world; add experiment=NAME.")
    files = experiments_in(folders or experiment_folders()) if asked else {}
    expanded: list[str] = []
    for override in overrides:
        if override.startswith(SCALE):
            expanded += smoke
            smoke = []
        else:
            expanded += _experiment(override, scale, files) if _is_experiment(override) else [_opened(override)]
    return expanded


def _opened(override: str) -> str:
    """The override as one that may add keys, where its value is a mapping: some options are mappings that begin empty."""
    return f"++{override}" if re.match(r"[\w.]+=\{", override) else override


def _is_experiment(override: str) -> bool:
    return override.startswith(EXPERIMENT) and override != f"{EXPERIMENT}null"


def _experiment(override: str, scale: str, files: Mapping[str, Path]) -> list[str]:
    name = override.removeprefix(EXPERIMENT)
    if scale == TOY:
        name = _at_toy_scale(name, files)
    table, _, rows = name.rpartition("/")
    if table and table not in files and _toy_twin(table, files):
        raise ConfigError(_no_such(table, files, ""))  # a row alone would run without the values of its table
    folder = rows_of(files[table]) if table in files else None
    known = sorted(name.rpartition("/")[2] for name in files if folder and name.rpartition("/")[0] == folder)
    wrong = [row for row in rows.split(",") if row not in known]
    if folder and not wrong:
        return [f"{EXPERIMENT}{table}", f"{ROW}{folder}={rows}"]
    for each in name.split(","):
        if each not in files:
            raise ConfigError(_no_such(each, files, unknown(f"row of experiment={table}", wrong[0], known) if known else ""))
        if "," in name and swept_keys(files[each]):
            raise ConfigError(f"{EXPERIMENT}{name} crosses tables, which have rows of their own; start one after the other.")
    return [f"{EXPERIMENT}{name}"]


def _no_such(name: str, files: Mapping[str, Path], instead: str) -> str:
    """The error for an experiment that does not exist; `instead`: the error for a row of one that does."""
    twin = None if instead else _toy_twin(name, files)
    if twin:
        return f"experiment={name} has no version at the paper's scale yet; add scale=toy, which is {twin}."
    return instead or unknown("experiment", name, [table for table, file in files.items() if swept_keys(file)])


def _at_toy_scale(name: str, files: Mapping[str, Path]) -> str:
    if name.split("/")[1:2] == [TOY]:
        return name
    twin = _toy_twin(name, files)
    if twin is None:
        toys = [parts for file in files if len(parts := file.split("/")) == 3 and parts[1] == TOY]
        of_home = [parts for parts in toys if parts[0] == name.partition("/")[0]]
        known = [f"{home}/{table}" for home, _, table in of_home or toys]
        raise ConfigError(unknown("experiment with a version for scale=toy", name, known))
    return twin


def _toy_twin(name: str, files: Mapping[str, Path]) -> str | None:
    """home/table as home/toy/table, if there is one; a row stays behind its table."""
    home, _, rest = name.partition("/")
    table = f"{home}/{TOY}/{rest}"
    above = table.rpartition("/")[0]
    return table if table in files or (above != f"{home}/{TOY}" and above in files) else None


def rows_of(config: Path) -> str | None:
    """The folder of a table's rows, None for a config that is no table or that sweeps values only."""
    return next((key.removeprefix(ROW) for key in swept_keys(config) if key.startswith(ROW)), None)


def swept_keys(config: Path) -> dict[str, Any]:
    """The keys that an experiment's config sweeps, with their values; empty for a single run."""
    content: Any = yaml.load(config.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    return dict(content.get("hydra", {}).get("sweeper", {}).get("params", None) or {})


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether the words ask for the help, and not for Hydra's."""
    return any(word in ("-h", "--help") for word in words)


def asks_for_config(words: Sequence[str]) -> bool:
    """Whether the words ask Hydra to show the config."""
    return any(word in ("-c", "--cfg") or word.startswith("--cfg=") for word in words)


def asks_for_completion(words: Sequence[str]) -> bool:
    """Whether a shell asks, as the script of `-sc install=SHELL` does."""
    return list(words[:1]) in (["-sc"], ["--shell-completion"]) and any(word.startswith("query=") for word in words)
