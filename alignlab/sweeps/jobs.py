"""The jobs of a sweep before they run: the name of the sweep, the config of each job, its run folder and state, its stages and
steps."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from alignlab.command_line import ROW, sentence
from alignlab.config import GROUPS, NO_INFLUENCE, RunConfig, finished, folder_of, parse
from alignlab.data.halves import HALVES
from alignlab.errors import AlignlabError, ConfigError
from alignlab.sweeps.cluster import Resources, resources_of
from alignlab.tracking.ledger import State, state_of
from alignlab.tracking.sweeps import Job, relative
from alignlab.tuners.config import StrengthConfig

if TYPE_CHECKING:
    from alignlab.memory import TrainingNeed
    from alignlab.planning import Plan

Load = Callable[[list[str]], DictConfig]
"""Composes one job from its overrides."""
Choices = Callable[[str], Sequence[str]]
"""The configs of a config group and the folders in it; none for a key that is not a group."""
_NAME = re.compile(r"[^\s${}\[\]():,'\"]+")
"""The text between the signs of interpolations: a key, a part of one, or a word that is no key."""
LONGEST_NAME = 100
"""Characters of overrides in a sweep's name; longer ones are hashed."""
OF_ROWS = ("epochs", "least_score")
"""Fractional numbers of a method that decide its rows or steps."""
READ_BY_ALL = ("model", "tuner", "data", "control", "trainer", "seed")
"""Config groups that any stage may read. The key of a stage's result (training/stage_key.py) says exactly what the stage reads,
but needs encoded rows. Two stages that are equal here have the same key; others may have it, too."""


def name_of(shared: Sequence[str], swept: Collection[str], overrides: Sequence[str]) -> str:
    """The experiment, if there is one, and every other override of the command line whose key the experiment does not sweep.

    `shared`: overrides of all jobs; `swept`: the keys that an experiment sweeps itself, which a command line may narrow;
    `overrides`: the command line's own sweeps. So `seed=7` narrows a table, and `method.beta=1.0` makes another sweep.
    """
    experiment = next((override.partition("=")[2] for override in shared if override.startswith("experiment=")), "")
    added = decisive([*shared, *overrides], swept) - {f"experiment={experiment}"}
    extra = "+".join(sorted(added))
    if "/" in extra or len(extra) > LONGEST_NAME or re.search(r"[^\w.,=+-]", extra):
        # The name becomes a folder and goes to W&B: no paths, no blanks.
        extra = hashlib.sha256(extra.encode()).hexdigest()[:8]
        extra = extra if experiment else f"sweep-{extra}"
    return "+".join(part for part in (experiment, extra) if part) or "sweep"


def checked_name(name: object) -> str | None:
    """The name that `sweep=` gives, None without one. Raises ConfigError for a name that is no folder below the runs."""
    if name is None:
        return None
    if not isinstance(name, str) or (re.search(r"[^\w.,=+/-]", name) or not all(part.strip(".") for part in name.split("/"))):
        raise ConfigError(f"sweep={name!r} must be letters, digits and .,=+-, in parts between slashes; it becomes a folder.")
    return name


def decisive(overrides: Collection[str], swept: Collection[str]) -> set[str]:
    """The overrides that make another sweep: their key is not swept by the experiment and can influence results."""
    keys = {override: override.partition("=")[0] for override in overrides}
    return {
        override for override, key in keys.items() if key not in swept and key.lstrip("+").partition(".")[0] not in NO_INFLUENCE
    }


class Composer:
    """Composes the jobs of a sweep one after the other.

    Hydra sets values at the very end of composition, so jobs that choose the same configs and set the same keys differ only in
    those values, and one composed config serves them in turn. Interpolations are resolved once, too, if no other key takes its
    value from a key that the jobs set.
    """

    def __init__(self, load: Load, choices: Choices) -> None:
        self._load = load
        self._choices = lru_cache(maxsize=None)(choices)
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The config of one job; the next call may change it. Raises what Hydra raises."""
        values = {override: parsed for override in overrides if (parsed := self._plain_value(override)) is not None}
        same = tuple(values[override].key_or_group if override in values else override for override in overrides)
        config = self._bases.get(same)
        if config is None:
            composed = self._composed(overrides)
            config = self._bases[same] = _resolved(composed, [value.key_or_group for value in values.values()])
            return config
        try:
            for value in values.values():
                OmegaConf.update(config, value.key_or_group, value.value())
        except OmegaConfBaseException:  # Hydra raises an error that `command_line` can explain
            del self._bases[same]
            return self._composed(overrides)
        return config

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        config = self._load(list(overrides))
        with open_dict(config):
            config.pop("hydra", None)
        return config

    def _plain_value(self, text: str) -> Override | None:
        """The override if it replaces a whole value; None for a choice of a config, an added key and a merged value."""
        override = _parsed(text)
        replaces = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
        key = override.key_or_group
        if not replaces or isinstance(override.value(), dict) or key.startswith("hydra.") or self._choices(key):
            return None
        return override


def _resolved(config: DictConfig, keys: Collection[str]) -> DictConfig:
    """The config with its interpolations resolved, or as it is if one of them reads any of `keys` or cannot be resolved."""
    texts = [text for text in _texts(OmegaConf.to_container(config)) if "${" in text]
    read = {name for text in texts for name in _NAME.findall(text)}
    anywhere = any("${." in text or "${${" in text for text in texts)
    if anywhere or any(_one_in_the_other(key, name) for name in read for key in keys):
        return config
    resolved = copy.deepcopy(config)
    try:
        OmegaConf.resolve(resolved)
    except OmegaConfBaseException:  # `parse` raises the error that explains it
        return config
    return resolved


def _one_in_the_other(key: str, other: str) -> bool:
    """Whether two keys are the same, or one is a part of the other's value."""
    key, other = (f"{name.strip('.')}." for name in (key, other))
    return key.startswith(other) or other.startswith(key)


def _texts(plain: Any) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, (dict, list)):
        for inner in plain.values() if isinstance(plain, dict) else plain:
            yield from _texts(inner)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    return OverridesParser.create().parse_override(text)


@dataclass(frozen=True)
class PlannedStage:
    """A stage that trains. `steps`: of the optimiser, at a learning rate of `rate`. `content`: equal in two jobs only if one of
    them computes the stage for both; "" where each job computes its own."""

    name: str
    steps: int
    content: str
    rate: float = 0.0


@dataclass(frozen=True)
class Looked:
    """What a plan tells of a job whose data and model are here. `rows`: kept of read in its first stage; `steps`: of each stage
    that trains; `need`: the memory of the stage that takes most; `seconds`: of a step of each stage, and of the whole
    evaluation, as far as like runs tell them."""

    rows: str
    steps: Mapping[str, int]
    need: TrainingNeed | None
    seconds: Mapping[str, float]
    evaluated: bool


@dataclass(frozen=True)
class PlannedJob:
    """A job before it runs. `overrides`: its whole command line; `job`: what the sweep's ledger keeps; `folder`: of its run;
    `stages`: those that train, None where their steps are not known; `estimated`: whether the steps are those of all records,
    of which some may be left out; `resources`: what it asks a cluster for; `looked`: None where nothing was looked at;
    `need`: the memory of the stage that takes most, None where it is not known; `misfit`: why that does not fit a GPU, if so.
    `measured`: what its evaluation measures, and what it leaves out; `revisions`: the commits of what it takes from the hub."""

    overrides: tuple[str, ...]
    job: Job
    state: State
    folder: Path = Path()
    stages: tuple[PlannedStage, ...] | None = ()
    estimated: bool = False
    resources: Resources = field(default_factory=Resources)
    looked: Looked | None = None
    need: TrainingNeed | None = None
    misfit: str = ""
    measured: str = ""
    revisions: tuple[str, ...] = ()

    @property
    def pending(self) -> bool:
        """Whether it has to run."""
        return not self.job.refused and self.state.name != "done"


class Inputs:
    """Looks at the data and the model of jobs as a run does before it loads weights. Of jobs that differ in their seed and in
    fractional numbers of method and tuner that no row depends on (rates, say), the first answers for all. Those whose model or
    data would come from the hub are not looked at, so that a plan downloads nothing."""

    def __init__(self) -> None:
        self._seen: dict[str, AlignlabError | Plan] = {}
        self._needs: dict[str, TrainingNeed | None] = {}
        self.first: Plan | None = None
        """The plan of the first job that was looked at."""

    def look_at(self, config: RunConfig) -> Looked | None:
        """What there is; None where nothing was looked at. Raises what the run would raise before training."""
        if config.model.source == "hub" or config.data.from_hub:
            return None
        key = _alike(config)
        if key not in self._seen:
            from alignlab.planning import make_plan

            try:
                self._seen[key] = make_plan(config)
            except AlignlabError as error:
                self._seen[key] = error
        found = self._seen[key]
        if isinstance(found, AlignlabError):
            raise found
        self.first = self.first or found
        return _looked(found, config)

    def need_of(self, config: RunConfig, looked: Looked | None) -> TrainingNeed | None:
        """The memory of a job: as its rows tell it, else as the config of its model does."""
        if looked:
            return looked.need
        key = _alike(config)
        if key not in self._needs:
            from alignlab.memory import need_of_config

            self._needs[key] = need_of_config(config)
        return self._needs[key]


def _alike(config: RunConfig) -> str:
    """Equal for two jobs only if the first answers for the other."""
    told = {group: _without_fractions(config.plain[group]) for group in ("method", "tuner")}
    plain = {key: told.get(key, value) for key, value in config.plain.items() if key not in NO_INFLUENCE}
    return json.dumps(plain, sort_keys=True)


def _looked(plan: Plan, config: RunConfig) -> Looked:
    from alignlab.plan_text import EVALUATION, Paces

    paces, needs = Paces(config), [need for need in plan.needs if need]
    account = plan.works[0].account if plan.works else None
    found = {name: paces.of(name) for name in (*config.method.fits(), *([EVALUATION] if config.suites else []))}
    return Looked(
        rows=f"{account.kept:,} of {account.read:,}" if account else "",
        steps={stage.name: work.steps for stage, work in zip(plan.method.stages, plan.works, strict=True) if stage.trains},
        need=max(needs, key=lambda need: need.total, default=None),
        seconds={name: pace.seconds for name, pace in found.items() if pace},
        evaluated=bool(config.suites),
    )


class Records:
    """How many records splits have before any row is left out, where their files are here: read, but not encoded."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int | None] = {}

    def of(self, config: RunConfig, split: str) -> int | None:
        """Of a split; None where the hub has it, and where a run would refuse it."""
        if config.data.from_hub:
            return None
        read = "train" if split in HALVES else split
        key = (json.dumps(config.plain["data"], sort_keys=True), read)
        if key not in self._counts:
            try:
                self._counts[key] = len(GROUPS["data"][config.data.name].build(config.data).split(read).records)
            except AlignlabError:
                self._counts[key] = None
        return self._counts[key]


def _without_fractions(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: value if key in OF_ROWS else _without_fractions(value) for key, value in plain.items()}
    return "a fraction" if isinstance(plain, float) else plain


def plan_jobs(
    commands: Sequence[Sequence[str]], shared: Collection[str], composer: Composer, inputs: Inputs | None = None
) -> list[PlannedJob]:
    """Every job of a sweep, in order. `shared`: the overrides that all jobs have. `inputs`: looks at those of the jobs
    that have to run; None = they are looked at when the jobs run, and only the records of their files are counted."""
    records = Records()
    return [_planned(tuple(overrides), shared, composer, records, inputs) for overrides in commands]


def plan_job(
    config: RunConfig, overrides: Sequence[str], shared: Collection[str] = (), records: Records | None = None
) -> PlannedJob:
    """One job, from its config and its command line. `records`: counts those that no config tells. Raises RunFolderError for a
    folder that another config made."""
    done = finished(config)
    folder = folder_of(config)
    stages = planned_stages(config)
    job = Job(
        **_own(overrides, shared),
        seed=config.seed,
        fingerprint=config.fingerprint,
        folder=relative(folder, Path(config.paths.runs)),
        steps=None if stages is None else sum(stage.steps for stage in stages),
    )
    state = state_of(folder)
    if state.name == "done" and done is None:
        state = State("missing", outdated=state.outdated)  # force=true or rerun=outdated
    estimated = stages is None
    if estimated and records and state.name != "done":
        stages = planned_stages(config, partial(records.of, config))
    return PlannedJob(tuple(overrides), job, state, folder, stages, estimated, resources_of(config), measured=_measured(config))


def _with_inputs(planned: PlannedJob, config: RunConfig, inputs: Inputs) -> PlannedJob:
    """The job with what was found, with the steps of the rows that are kept, and with the memory that it takes."""
    from alignlab.memory import misfit
    from alignlab.plan_text import commits

    looked = inputs.look_at(config)
    need = inputs.need_of(config, looked)
    too_much = misfit(need, config, planned.resources.gpus) if need else ""
    planned = replace(planned, looked=looked, need=need, misfit=too_much, revisions=tuple(commits(config)))
    if looked is None:
        return planned
    contents, fits = _contents(config), config.method.fits()
    stages = tuple(
        PlannedStage(name, steps, contents.get(name, ""), fits[name].learning_rate) for name, steps in looked.steps.items()
    )
    job = replace(planned.job, steps=sum(stage.steps for stage in stages))
    return replace(planned, job=job, stages=stages, estimated=False)


def _measured(config: RunConfig) -> str:
    """What an evaluation measures and what not, for a plan."""
    return "; ".join([f"evaluation: {', '.join(config.suites) or 'none'}", *config.not_measured])


def _planned(
    overrides: tuple[str, ...], shared: Collection[str], composer: Composer, records: Records, inputs: Inputs | None
) -> PlannedJob:
    """One job; a job whose config cannot run is refused with the error as its reason."""
    try:
        config = parse(composer(overrides))
        planned = plan_job(config, overrides, shared, records)
        if inputs and planned.pending:
            planned = _with_inputs(planned, config, inputs)
        return planned
    except Exception as error:
        why = sentence(error)
        if why is None:
            raise
    seeds = [override.partition("=")[2] for override in overrides if override.startswith("seed=")]
    seed = int(seeds[-1]) if seeds and re.fullmatch(r"-?\d+", seeds[-1]) else 0
    job = Job(**_own(overrides, shared), seed=seed, fingerprint="", folder="", steps=None, refused=why)
    return PlannedJob(overrides, job, State("failed", {"error": why}))


def _own(overrides: Sequence[str], shared: Collection[str]) -> dict[str, Any]:
    """The overrides that the sweep does not share, the row among them, and the other swept keys with their values."""
    own = tuple(override for override in overrides if override not in shared)
    row = next((override for override in overrides if override.startswith(ROW)), "")
    swept = [override.partition("=") for override in own if override != row and not override.startswith("seed=")]
    return {"overrides": own, "row": row.partition("=")[2], "settings": {key.lstrip("+"): value for key, _, value in swept}}


def planned_stages(config: RunConfig, counted: Callable[[str], int | None] | None = None) -> tuple[PlannedStage, ...] | None:
    """The stages that train, in order; None where their steps depend on data whose size no config says, and `counted`, from a
    split to its records, neither."""
    contents = _contents(config)
    stages: list[PlannedStage] = []
    for name, fit in config.method.fits().items():
        split, per_record = config.method.reads(name)
        records = config.data.expected(split)
        if records is None and fit.steps is None and counted:
            records = config.data.drawn(split, counted(split))
        if records is None and fit.steps is None:
            return None
        steps = fit.total_steps((records or 0) * per_record)
        stages.append(PlannedStage(name, steps, contents.get(name, ""), fit.learning_rate))
    return tuple(stages)


def _contents(config: RunConfig) -> dict[str, str]:
    """From the name of a shared stage to its content, which includes the content of the stages before it."""
    shared = {} if config.force else config.method.shared()
    contents: dict[str, str] = {}
    alone = config.tuner.leaves_backbone and config.trainer.validation is None
    read_by_all = {key: config.plain[key] for key in READ_BY_ALL}
    if isinstance(config.control, StrengthConfig):
        read_by_all["control"] = None  # strengths are read by the evaluation
    so_far = ""
    for name, read in shared.items():
        alone = alone and name in config.method.of_the_backbone()
        so_far = f"{so_far} {name} {read!r}"
        contents[name] = (
            f"{json.dumps({**read_by_all, 'tuner': None if alone else read_by_all['tuner']}, sort_keys=True)}{so_far}"
        )
    return contents


def steps_computed_once(jobs: Iterable[tuple[PlannedStage, ...]]) -> tuple[int, dict[str, tuple[int, int]]]:
    """The steps of all jobs if each shared stage is computed once; and from the name of a shared stage to how often it is
    computed and for how many jobs."""
    stages = [stage for job in jobs for stage in job]
    own = [stage for stage in stages if not stage.content]
    shared = [stage for stage in stages if stage.content]
    once = {stage.content: stage for stage in shared}.values()
    times, having = (Counter(stage.name for stage in each) for each in (once, shared))
    return sum(stage.steps for stage in [*own, *once]), {name: (times[name], having[name]) for name in times}
