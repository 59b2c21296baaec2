"""The typed run: `parse` turns the composed config into dataclasses that fit together, and checks that a run folder belongs to
it.

`parse` refuses keys that no config has, values outside their type or range, and parts that do not fit each other, each in one
sentence and before torch is imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from alignlab.data import SOURCES
from alignlab.data.config import DataConfig
from alignlab.errors import ConfigError, RunFolderError
from alignlab.evaluation import EVALUATIONS, METRICS, SUITES
from alignlab.evaluation.config import EvaluationConfig
from alignlab.files import contents, places, remove_free
from alignlab.methods import METHODS
from alignlab.models import MODELS
from alignlab.models.config import ModelConfig
from alignlab.registry import Entry, Registry, cut, one_of, path, random_seed, refuse_strays, typed, unknown
from alignlab.tracking import TRACKERS
from alignlab.tracking.ledger import LOCK, QUEUED, REPORT, STATUS, Ledger, state_of
from alignlab.training.config import LocalLaunch, SlurmLaunch, TrainerConfig
from alignlab.tuners import CONTROLS, TUNERS
from alignlab.tuners.config import FormConfig, StrengthConfig, TunerConfig


@dataclass
class PathsConfig:
    """`runs`: where run folders go. `data`, `models`: local folders, null where there are none."""

    runs: Annotated[str, path()]
    data: Annotated[str | None, path()]
    models: Annotated[str | None, path()]


@dataclass
class SizingConfig:
    """Which sizing configs were laid over the tuner's, the control's and the method's own numbers; null = none."""

    tuner: str | None
    control: str | None
    method: str | None


def _same(config: Any) -> Any:
    return config


GROUPS: Mapping[str, Registry] = {
    "method": METHODS,
    "tuner": TUNERS,
    "model": MODELS,
    "data": SOURCES,
    "control": CONTROLS,
    "evaluation": EVALUATIONS,
    "trainer": Registry("trainer", dict.fromkeys(("default", "validated", "fsdp", "deepspeed"), Entry(TrainerConfig, _same))),
    "tracking": TRACKERS,
    "launch": Registry("launch", {"local": Entry(LocalLaunch, _same), "slurm": Entry(SlurmLaunch, _same)}),
}
NO_INFLUENCE = ("seed", "force", "rerun", "plan", "folder", "sweep", "paths", "tracking", "launch")
"""Keys that do not change what a run computes from its seed, and so are not in its fingerprint."""
WITH_FILES = ("method", "data", "tuner", "model", "evaluation")
"""The groups whose configs may name files."""
NAMED = ("method", "data", "tuner", "model", "control")
"""The groups that a misfit names."""

WHO_PROVIDES: Mapping[str, str] = {
    "pairs": "try data=toy, hh_rlhf, ultrafeedback or summaries",
    "chosen": "try data=toy, hh_rlhf, ultrafeedback or summaries",
    "labels": "set control.classes.by to what the data has",
    "scores": "set control.classes.by to what the data has",
    "attributes": "set control.classes.by to what the data has",
    "classes": "take control=text, token, soft_prompt or lora",
    "controls": "take tuner=control",
    "labelled training": "take method=meet or coh, which learn classes",
    "learned control": "a phrase has nothing to learn by itself, so take control=token, soft_prompt or lora, or method=coh",
    "classes as text": "HIR is decoded with its prefix, so take tuner=control control=prefixes",
    "blocks in place": "take tuner=lora_lower, or another that neither adds blocks nor chooses between classes",
    "label set": "try data=toy_classes, text_classification or glue",
    "token likelihood": "a classifier gives texts no likelihood, so take model.kind=causal or seq2seq",
    "hidden states": "only causal models give them, so take model.kind=causal",
    "text in front of prompts": "a control stands in front of what a causal model reads, so take model.kind=causal",
    "source apart from the answer": "a token bank stands in front of what an encoder reads, so take an encoder-decoder model",
    "token bank": "method=tpt trains the parts of a bank, so take tuner=token_bank",
    "trained bank": "stage `bank` makes it, so add it to method.stages, or give tuner.bank_from=RUN/stages/bank/result",
    "response scores": "set model.kind=reward",
    "reward training": "a reward model is trained by method=reward, so take that, or another model.kind",
    "continuation": "only causal models continue a text, so take model.kind=causal",
    "settings of its own": "give them in the suite's section of evaluation",
    "references": "try data=e2e_nlg",
    "corpus": "take data=texts for texts of your own, or data=toy",
    "every weight": "take tuner=full",
    "training": "give tuner.aligned=FOLDER, or for the backbone alone tuner=lora control.strengths=[0.0]",
    "no training": "tuner.aligned is left as it is, so take method=evaluate",
    "float32 weights": "set model.dtype=float32, since small steps round away in half precision where a tuner is"
    " some of the backbone's own weights",
}
"""What to do about a capability that is required and not provided."""
STORE = ".store"
"""Folder beside the runs: what all of them share."""
NO_RUN_YET = (LOCK, QUEUED, STATUS)
"""Files that can be in a run's folder before it has begun; its status, where its data was refused in a sweep."""


@dataclass(frozen=True)
class TopConfig:
    """The keys that stand in no group. `rerun`: finished runs of another version (outdated) too; null = none.

    `plan`: only say what would be done. `sweep`: the sweep that it is a job of. `scale`: smoke cuts rows, steps, prompts and
    tokens to what their fields declare for it; null = as given."""

    seed: Annotated[int, random_seed()]
    force: bool
    rerun: Annotated[str | None, one_of("outdated")]
    plan: bool
    scale: Annotated[str | None, one_of("smoke")]
    folder: Annotated[str | None, path()]
    sweep: str | None
    paths: PathsConfig
    sizing: SizingConfig


@dataclass(frozen=True)
class RunConfig(TopConfig):
    """A run that fits together. `plain`: the same as nested dicts, for files. `left_out`: suites without their data."""

    method: Any
    tuner: TunerConfig
    model: ModelConfig
    data: DataConfig
    control: StrengthConfig | FormConfig
    evaluation: EvaluationConfig
    trainer: TrainerConfig
    tracking: Any
    launch: LocalLaunch | SlurmLaunch
    suites: tuple[str, ...]
    left_out: Mapping[str, str]
    plain: Mapping[str, Any]

    @property
    def not_measured(self) -> list[str]:
        """The suites that are left out, a sentence for each reason."""
        named = {why: [name for name, its in self.left_out.items() if its == why] for why in self.left_out.values()}
        return [f"left out: {', '.join(names)} ({why})" for why, names in named.items()]

    @property
    def fingerprint(self) -> str:
        """Eight characters that change with anything that changes the result, the seed aside, and with nothing else: files
        count by their content, wherever they lie."""
        decisive: dict[str, Any] = {key: value for key, value in self.plain.items() if key not in NO_INFLUENCE}
        for group in WITH_FILES:
            part = getattr(self, group)
            named = {key: value for key, value in decisive[group].items() if key not in places(part)}
            decisive[group] = [named, contents(part)]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """method-tuner-model-data; of a control, its form for the tuner."""
        tuner = self.control.name if isinstance(self.control, FormConfig) else self.tuner.name
        return "-".join((self.method.name, tuner, self.model.name, self.data.name))


def parse(raw: DictConfig) -> RunConfig:
    """The typed run. Raises ConfigError for stray keys, wrong types, missing values and choices that do not fit each other."""
    plain = _resolved(raw)
    top = {each.name: plain.get(each.name) for each in dataclasses.fields(TopConfig)}
    refuse_strays("", plain, dict.fromkeys([*top, "experiment", *GROUPS]))
    made = typed("", {**top, "paths": top["paths"] or {}, "sizing": top["sizing"] or {}}, TopConfig)
    if made.scale is not None:
        plain |= {group: cut(plain.get(group), _schema(group, plain)) for group in GROUPS}
    first = ("data", *GROUPS)  # other groups take values from the data's; what is wrong is said of where it was given
    parts = {group: _part(group, plain) for group in dict.fromkeys(first)}
    chosen = {group: (GROUPS[group][parts[group].name], parts[group]) for group in GROUPS}
    offered = check_fit(chosen)
    suites, left_out = fitting_suites(parts["evaluation"], offered)
    check_validation(parts["trainer"], parts["evaluation"], offered)
    return RunConfig(
        **vars(made),
        suites=suites,
        left_out=left_out,
        plain={key: value for key, value in plain.items() if key not in ("experiment", "scale")},
        **parts,
    )


def parts_of(raw: DictConfig, groups: Sequence[str]) -> dict[str, Any]:
    """Some groups of a run as their dataclasses, without a look at files: what a finished run needs of its config."""
    plain = _resolved(raw)
    return {group: _part(group, plain, whole=False) for group in groups}


def _resolved(raw: DictConfig) -> dict[str, Any]:
    try:
        resolved = OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value; give it one on the command line.") from error
    except InterpolationKeyError as error:
        raise ConfigError(_taken_from_nowhere(raw, error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(resolved, dict)
    for key, text in _texts_of(resolved):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(f"{key}={text!r} holds a byte that is no UTF-8; give it as UTF-8.") from error
    return typing.cast("dict[str, Any]", resolved)


def _texts_of(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a config with its key, the keys of mappings included."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, (dict, list)):
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts_of(str(key), at)
            yield from _texts_of(held, f"{at}.{key}".strip("."))


def _taken_from_nowhere(raw: DictConfig, error: InterpolationKeyError) -> str:
    """The sentence for a value that one config takes from another, which has no such key."""
    found = re.search(r"'((\w+)\.[\w.]+)'", str(error))
    if found is None or found.group(2) not in GROUPS:
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    key, group = found.groups()
    table, _, row = key.rpartition(".")[0].rpartition(".")
    rows = OmegaConf.select(raw, table) if row and OmegaConf.select(raw, f"{table}.{row}") is None else None
    if isinstance(rows, DictConfig):  # a row of a table that its config holds: method.presets.paper
        return unknown(table, row, [str(name) for name in rows])
    choice = OmegaConf.select(raw, f"{group}.name")
    field = key.split(".")[1]
    having = [
        name for name, entry in GROUPS[group].items() if field in {each.name for each in dataclasses.fields(entry.config)}
    ]
    return f"{error.full_key} is taken from {key}, which {group}={choice} does not have; choose {group}={'|'.join(having)}."


def _part(group: str, plain: Mapping[str, Any], *, whole: bool = True) -> Any:
    schema = _schema(group, plain)
    return typed(group, plain[group], schema, whole=whole)


def _schema(group: str, plain: Mapping[str, Any]) -> type:
    """The dataclass of what is chosen of a group."""
    config, registry = plain.get(group), GROUPS[group]
    if not isinstance(config, dict) or "name" not in config:
        raise ConfigError(f"{group} is not chosen; add {group}=NAME, one of {', '.join(registry)}.")
    return registry[str(config["name"])].config


def check_fit(chosen: Mapping[str, tuple[Entry, Any]]) -> frozenset[str]:
    """All capabilities that the choices of a run provide. Raises ConfigError for a required one that none of them provides."""
    offered = frozenset[str]().union(*(entry.provides(part) for entry, part in chosen.values()))
    for group, (entry, part) in chosen.items():
        missing = entry.requires(part) - offered
        if missing:
            others = ", ".join(f"{other}={chosen[other][1].name}" for other in NAMED if other != group)
            advice = "; ".join(dict.fromkeys(WHO_PROVIDES.get(word, f"nothing provides {word!r}") for word in sorted(missing)))
            raise ConfigError(
                f"{group}={part.name} needs {' and '.join(sorted(missing))}, which none of {others} provides; {advice}."
            )
    return offered


def fitting_suites(evaluation: EvaluationConfig, offered: frozenset[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The suites that a run can serve, and for the others what is missing. Raises ConfigError for an unknown suite, and for
    values that cannot be sampled with together."""
    if evaluation.suites:
        evaluation.sampling()
    second = evaluation.judge.second_turn_strength
    if second is not None and "classes" in offered:
        raise ConfigError(
            f"evaluation.judge.second_turn_strength={second:g} is a strength, and this run has classes; leave it out."
        )
    missing = {name: sorted(SUITES[name].requires(evaluation) - offered) for name in evaluation.suites}
    left_out = {
        name: f"needs {' and '.join(lacking)}, which this run does not have" for name, lacking in missing.items() if lacking
    }
    return tuple(name for name in evaluation.suites if name not in left_out), left_out


def check_validation(trainer: TrainerConfig, evaluation: EvaluationConfig, offered: frozenset[str]) -> None:
    """Raises ConfigError for a suite that the run cannot serve while it trains, and for a metric that is not the suite's."""
    wanted = trainer.validation
    if wanted is None:
        return
    missing = sorted(SUITES[wanted.suite].requires(evaluation) - offered)
    if missing:
        raise ConfigError(
            f"trainer.validation.suite={wanted.suite} needs {' and '.join(missing)}, which this run does not have; take another"
            f" of {', '.join(SUITES)}."
        )
    if wanted.metric not in METRICS[wanted.suite]:
        raise ConfigError(unknown(f"trainer.validation.metric of suite {wanted.suite}", wanted.metric, METRICS[wanted.suite]))
    if trainer.extra.get("fsdp"):
        raise ConfigError("trainer.validation measures the whole model, and trainer.extra.fsdp spreads it; set one to null.")


def portable(config: RunConfig) -> dict[str, Any]:
    """The config as a run's folder keeps it: local places relative to that folder, so that both can move, or to the home
    folder; the accounts of a cluster are not the run's."""
    folder = folder_of(config)
    plain = {key: value for key, value in config.plain.items() if key != "launch"}
    for group in WITH_FILES:
        plain[group] = _portable(plain[group], folder)
    plain["paths"] = {name: place and _from(Path(place), folder) for name, place in vars(config.paths).items()}
    return {**plain, "folder": None if config.folder is None else "."}


def _portable(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _portable(inner, folder) for key, inner in value.items()}
    return portable_place(value, folder) if isinstance(value, str) else value


def portable_place(value: str, folder: Path) -> str:
    """A value that holds an existing path, perhaps behind `word:`, with the path as `folder` reaches it: relative where that
    names no home of a person, else from ~. Any other value as it is."""
    prefix, colon, place = value.rpartition(":")
    if not _is_place(place) or not Path(place).expanduser().exists():
        return value
    return f"{prefix}{colon}{_from(Path(place), folder)}"


def _from(place: Path, folder: Path) -> str:
    """A path as a folder reaches it, or from the home folder."""
    path, here, home = place.expanduser().absolute(), folder.absolute(), Path.home()
    common = Path(os.path.commonpath([path, here]))
    if common.is_relative_to(home) or (not path.is_relative_to(home) and common != Path(common.anchor)):
        path = Path(os.path.relpath(path, here))
    elif path.is_relative_to(home):
        path = Path("~") / path.relative_to(home)
    return path.as_posix()


def found_place(value: str, folder: Path) -> str:
    """A value of a run's folder as this process finds it: the other way round from `portable_place`."""
    prefix, colon, place = value.rpartition(":")
    inside = folder / Path(place).expanduser()
    return f"{prefix}{colon}{inside}" if _is_place(place) and inside.exists() else value


def _is_place(text: str) -> bool:
    """Whether it can only be a path, and no name."""
    return text.startswith((".", "~")) or os.sep in text


def folder_of(config: RunConfig) -> Path:
    """The run's folder: as given, or by title, fingerprint and seed."""
    if config.folder:
        return Path(config.folder)
    return Path(config.paths.runs) / f"{config.title}-{config.fingerprint}" / f"seed-{config.seed}"


def remove_left_locks(runs: str, folders: Iterable[Path]) -> None:
    """Removes the locks that processes could not remove: of done runs, and of the store that they share."""
    for folder in folders:
        remove_free(folder)
    remove_free(Path(runs) / STORE / "stages", "*.lock")


def finished(config: RunConfig) -> Path | None:
    """The report of this very run, if it has been done before and is not to be done again.

    Raises RunFolderError for a folder that another config made.
    """
    folder = folder_of(config)
    refuse_other(Ledger(folder), config)
    state = state_of(folder)
    again = config.force or (config.rerun == "outdated" and state.outdated)
    return folder / REPORT if state.name == "done" and not again else None


def headline_of(report: Path) -> float | None:
    """The headline number of a report on disk; None for a run without evaluation."""
    shown = (Ledger(report.parent).read(report.name) or {}).get("headline")
    return float(shown["value"]) if shown else None


def refuse_other(ledger: Ledger, config: RunConfig) -> None:
    """Raises RunFolderError for a folder that another config made, or that holds no run, or is a file, or cannot be made."""
    there = os.path.exists  # unlike Path.exists, it raises nothing below a folder that may not be read
    if there(ledger.folder) and not ledger.folder.is_dir():
        raise RunFolderError(f"{ledger.folder} is a file; give the path of a folder.")
    if not there(ledger.folder):
        above = next(folder for folder in ledger.folder.absolute().parents if there(folder))
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise RunFolderError(f"{ledger.folder} cannot be made in {above}; give another folder.")
        return
    try:
        made_by = ledger.read("config.json")
    except RunFolderError:
        if config.folder is not None:
            raise
        made_by = None
    if made_by is None:
        if config.folder is None:  # its name holds the fingerprint and the seed, and the file is written again
            return
        if ledger.folder.is_dir() and any(_is_foreign(file) for file in ledger.folder.iterdir()):
            raise RunFolderError(f"{ledger.folder} is not empty and holds no run; give another folder.")
        return
    found = made_by.get("fingerprint"), made_by.get("seed")
    if found != (config.fingerprint, config.seed):
        raise RunFolderError(
            f"{ledger.folder} was made by another config (fingerprint {found[0]}, seed {found[1]}; this"
            f" one is {config.fingerprint}, seed {config.seed}); give another folder or remove it."
        )


def _is_foreign(file: Path) -> bool:
    return file.suffix != ".part" and file.name not in NO_RUN_YET
