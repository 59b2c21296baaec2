"""Where jobs run: what a config may say, and what is answered where there is no SLURM."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from submitit.core.utils import JobPaths

from alignlab.__main__ import main
from alignlab.config import parse
from alignlab.errors import ConfigError, SweepError
from alignlab.files import alone
from alignlab.sweeps import slurm
from alignlab.sweeps.cluster import Queue, Resources, resources_of
from alignlab.sweeps.local import NoSlurm
from alignlab.sweeps.slurm import SlurmLauncher
from alignlab.tracking.ledger import LOCK, QUEUED, Ledger, state_of
from alignlab.training.config import SlurmLaunch
from tests.unit.conftest import CONF
from tests.unit.sweeps.configs import config_of

Composed = Callable[..., DictConfig]
REFUSED = "Traceback ...\nalignlab.errors.DataError: row 3 is empty."
"""As submitit keeps an error."""


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Only these commands are found."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_config_is_a_launch(composed: Composed) -> None:
    launch = parse(composed("method=dpo", "launch=slurm", "launch.gpus=1", "+launch.extra.qos=low")).launch

    assert isinstance(launch, SlurmLaunch)
    assert (launch.gpus, launch.memory_gb, launch.retries, launch.signal_seconds) == (1, None, 5, 180)
    assert launch.extra == {"qos": "low"}


def test_where_a_run_is_launched_changes_nothing_of_it(composed: Composed) -> None:
    here, there = parse(composed("method=dpo")), parse(composed("method=dpo", "launch=slurm"))

    assert here.fingerprint == there.fingerprint


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("launch.gpus=0", "launch.gpus=0 must be at least 1, or null"),
        ("launch.minutes=0", "launch.minutes=0 must be at least 1"),
        ("launch.retries=-1", "launch.retries=-1 must be at least 0"),
        ("launch.minutes=3", "launch.signal_seconds=180 must be below launch.minutes=3"),
        ("launch.gpu=1", "launch.gpu; did you mean gpus or cpus?"),
    ],
)
def test_amounts_that_make_no_job_are_refused(composed: Composed, word: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        parse(composed("method=dpo", "launch=slurm", f"+{word}" if "gpu=" in word else word))


def launcher_config(*words: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = compose("run", list(words), return_hydra_config=True)
    whole = OmegaConf.create({"launch": made.launch, "hydra": {"sweep": {"dir": ""}}, "it": made.hydra.launcher})
    return OmegaConf.to_container(whole, resolve=True)["it"]  # type: ignore[index, call-overload]


def read_by_launcher(runs: Path, *words: str) -> Any:
    """What Hydra gives a launcher beside its own options."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        launch = compose("run", ["launch=slurm", *words]).launch
    return OmegaConf.create({"paths": {"runs": str(runs)}, "launch": launch})


def test_what_the_config_says_reaches_the_launcher_and_its_own_options_stay_open() -> None:
    words = ["launch.partition=big", "launch.memory_gb=40", "launch.setup=[module load cuda]", "hydra.launcher.qos=low"]

    config = launcher_config("launch=slurm", *words)

    assert (config["partition"], config["mem_gb"], config["setup"], config["qos"]) == ("big", 40, ["module load cuda"], "low")
    assert (config["timeout_min"], config["signal_delay_s"], config["max_num_timeout"]) == (1440, 180, 5)


def test_with_slurm_a_single_run_is_submitted_too() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        here, there = (compose("run", [f"launch={name}"], return_hydra_config=True).hydra.mode for name in ("local", "slurm"))

    assert here is None
    assert there.name == "MULTIRUN"


@pytest.mark.parametrize(
    ("there", "missing"), [((), "sbatch and srun are"), (("sbatch",), "srun is"), (("srun",), "sbatch is")]
)
def test_without_sbatch_and_srun_nothing_is_submitted(
    there: tuple[str, ...], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, monkeypatch, **dict.fromkeys(there, "exit 1"))
    launcher = SlurmLauncher(**launcher_config("launch=slurm"))
    launcher.config = read_by_launcher(tmp_path)

    with pytest.raises(SweepError, match=f"launch=slurm needs SLURM's commands sbatch and srun, and {missing} not here"):
        launcher.launch([["method=red"]], 0)

    assert {path.name for path in tmp_path.iterdir()} == set(there)


def test_without_the_plug_in_the_extra_is_named() -> None:
    with pytest.raises(SweepError, match=r"pip install 'alignlab\[slurm\]'"):
        NoSlurm(partition=None).launch([["method=red"]], 0)


def test_the_queue_tells_waiting_jobs_from_ended_and_forgotten_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path, monkeypatch, squeue="echo '7 0 RUNNING'; echo '7 1 OUT_OF_MEMORY'; echo '8 N/A PENDING'")

    queue = Queue()

    assert [queue.holds(job) for job in ("7_0", "7_1", "8", "9")] == [True, False, True, False]
    assert [queue.over(job) for job in ("7_0", "7_1", "8", "9")] == [False, True, False, True]


def test_a_queue_that_does_not_answer_ends_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path, monkeypatch, squeue="exit 1")

    assert not Queue().over("7_0")
    assert not Queue().holds("7_0")


@pytest.mark.parametrize(
    ("jobs", "parallel", "shares"),
    [
        (7, 256, [256]),
        (1000, 3, [3]),
        (2500, 256, [103, 102, 51]),
        (2500, 2, [1, 1, 0]),
        (4001, 1, [1, 0, 0, 0, 0]),
    ],
)
def test_the_arrays_of_a_long_sweep_share_what_may_run_at_once(jobs: int, parallel: int, shares: list[int]) -> None:
    made = list(slurm.arrays([range(jobs)], parallel))

    assert [share for _, share in made] == shares
    assert [index for part, _ in made for index in part] == list(range(jobs))
    assert max(len(part) for part, _ in made) <= 1000


def test_an_array_that_has_no_share_waits_for_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path, monkeypatch, squeue=":", sbatch="exit 1", srun=":")
    monkeypatch.setattr(slurm, "LARGEST_ARRAY", 2)
    submitted: list[tuple[int, int, str | None]] = []

    def submit(given: list[list[str]], _: Resources, at_once: int, behind: str | None) -> list[Submitted]:
        submitted.append((len(given), at_once, behind))
        return [Submitted(f"{len(submitted)}_{place}", JobPaths(tmp_path, "1")) for place in range(len(given))]

    launcher = SlurmLauncher(**launcher_config("launch=slurm"))
    launcher.config = read_by_launcher(tmp_path, "launch.detach=true", "launch.parallel=1")
    monkeypatch.setattr(launcher, "_submit", submit)

    launcher.launch([["method=red", f"seed={seed}"] for seed in range(5)], 0)

    assert submitted == [(2, 1, None), (2, 1, "1"), (1, 1, "2")]


def test_a_job_asks_for_what_its_model_needs_and_for_gpus_that_divide_its_batches() -> None:
    def asked(*words: str) -> tuple[int | None, int | None]:
        made = resources_of(config_of("method=dpo", "launch=slurm", *words))
        return made.gpus, made.memory_gb

    def cores(*words: str) -> int | None:
        return resources_of(config_of("method=dpo", "launch=slurm", *words)).cpus

    assert asked() == (None, None)  # of the embedded world
    assert asked("model=qwen25_15b") == (1, 32)
    assert asked("model=llama31_8b", "method.prefer.batch=64") == (4, 128)
    assert asked("model=llama31_8b", "method.prefer.batch=6") == (3, 128)
    assert asked("model=llama31_8b", "launch.gpus=2", "launch.memory_gb=900") == (2, 900)
    assert (cores(), cores("trainer.threads=3"), cores("trainer.threads=3", "launch.cpus=5")) == (8, 3, 5)


@pytest.mark.parametrize(
    ("model", "millions"), [("qwen25_15b", 1543.7), ("qwen25_7b", 7615.6), ("llama32_3b", 3212.7), ("llama31_8b", 8030.3)]
)
def test_models_of_the_hub_have_the_size_that_their_cards_name(model: str, millions: float) -> None:
    counted = resources_of(config_of("method=dpo", "launch=slurm", f"model={model}")).parameters

    assert round((counted or 0) / 1e6, 1) == millions


def test_the_plan_shows_the_script_that_sbatch_gets_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path, monkeypatch, squeue=":", sbatch="echo Submitted batch job $$", srun=":")
    for name in ("snapshot", "place_of"):
        monkeypatch.setattr(slurm, name, lambda into, _: into.absolute() / "copy")
    config = launcher_config("launch=slurm")
    launcher = SlurmLauncher(**{key: value for key, value in config.items() if key != "_target_"})
    words = ("launch.detach=true", "launch.parallel='3'", "launch.minutes='90'", "launch.retries='2'")  # numbers, as texts
    launcher.config = read_by_launcher(tmp_path / "runs", *words)
    launcher.resources = [Resources(1, 32, 8), Resources(4, 128), Resources(1, 32, 8)]
    jobs = [["method=red", f"seed={seed}", "sweep=mine"] for seed in range(3)]

    shown = launcher.scripts(jobs)
    assert not (tmp_path / "runs").exists()
    launcher.launch(jobs, 0)

    assert [what.partition(",")[0] for what, _ in shown] == ["2 jobs: 1 GPU", "1 job: 4 GPUs"]
    turns = "GPU hours in one turn of all, and each has up to 3 turns"
    assert [what.partition("; at most ")[2] for what, _ in shown] == [f"3 {turns}", f"6 {turns}"]
    written = {path.read_text() for path in (tmp_path / "runs").rglob("*.sh")}
    assert {script for _, script in shown} == written
    assert "#SBATCH --array=0-1%2" in shown[0][1]
    assert "#SBATCH --gpus-per-node=4" in shown[1][1]
    assert ["#SBATCH --cpus-per-task=8" in script for _, script in shown] == [True, False]
    assert shown[0][0].startswith("2 jobs: 1 GPU, 8 CPU cores for each process, 32 GB of memory, for a model of ")


@dataclass
class Waiting:
    """Jobs 7_0, 7_1, ... in the queue, a run folder each. Time passes when the launcher sleeps, and `then` happens."""

    launcher: SlurmLauncher
    runs: list[Path]
    jobs: dict[int, Any]
    passed: float = 0.0
    then: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.then()

    def leaves(self, place: int, outcome: tuple[str, Any]) -> None:
        """A job's result."""
        self.jobs[place].paths.result_pickle.write_bytes(pickle.dumps(outcome))

    def ends(self) -> dict[int, JobReturn]:
        return self.launcher._wait(self.jobs)


@dataclass
class Submitted:
    """A job as submitit names it."""

    job_id: str
    paths: JobPaths


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """Four jobs that a queue has never heard of, unless `squeue` is written anew."""
    commands(tmp_path, monkeypatch, squeue=":", sbatch="exit 1", srun=":")
    (tmp_path / "slurm").mkdir()
    ids = [f"7_{place}" for place in range(4)]
    jobs = {place: Submitted(job, JobPaths(tmp_path / "slurm", job)) for place, job in enumerate(ids)}
    launcher = SlurmLauncher(**launcher_config("launch=slurm"))
    launcher.config = read_by_launcher(tmp_path)
    launcher.folders = runs = [tmp_path / f"run-{place}" for place in jobs]
    for place, job in jobs.items():
        launcher._note(place, job, None)
    made = Waiting(launcher, runs, jobs)
    monkeypatch.setattr(slurm, "time", SimpleNamespace(monotonic=lambda: made.passed, sleep=made.sleep))
    return made


def test_runs_whose_jobs_were_killed_or_cancelled_say_so_from_then_on(waiting: Waiting) -> None:
    Ledger(waiting.runs[0]).status("running", host="another")
    Ledger(waiting.runs[2]).status("failed", error="DivergedError: the loss is nan")
    Ledger(waiting.runs[3]).status("done")
    Ledger(waiting.runs[3]).write("report.json", {"headline": {"value": 0.5}})

    results = waiting.ends()

    killed, never, failed, done = (state_of(run) for run in waiting.runs)
    gone = f"has left the queue (gone) and no result; its log: {waiting.jobs[0].paths.folder}"
    assert [killed.name, never.name, failed.name, done.name] == ["failed", "failed", "failed", "done"]
    assert killed.details["error"] == f"its job 7_0 {gone}/7_0_0_log.out"
    assert never.details["error"] == f"its job 7_1 {gone}/7_1_0_log.out"
    assert failed.details["error"] == "DivergedError: the loss is nan"
    assert [(run / QUEUED).exists() for run in waiting.runs[:3]] == [False] * 3
    assert [results[place].status for place in range(4)] == [JobStatus.FAILED] * 3 + [JobStatus.COMPLETED]


def test_a_run_whose_job_failed_before_it_began_says_so(waiting: Waiting) -> None:
    waiting.leaves(0, ("error", REFUSED))
    for place in (1, 2, 3):
        waiting.leaves(place, ("success", 0.25))

    results = waiting.ends()

    assert state_of(waiting.runs[0]).name == "failed"
    assert state_of(waiting.runs[0]).details["error"].startswith("row 3 is empty; its log: ")
    assert not (waiting.runs[0] / QUEUED).exists()
    assert results[1].return_value == 0.25
    assert waiting.passed == 0.0


def test_an_error_of_several_lines_is_told_by_the_line_that_names_it(waiting: Waiting) -> None:
    said = "CUDA error: device-side assert triggered\nSet CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA`."
    waiting.leaves(0, ("error", f"Traceback ...\n  File ...\ntorch.AcceleratorError: {said}"))
    waiting.leaves(1, ("error", "killed"))
    for place in (2, 3):
        waiting.leaves(place, ("success", None))

    waiting.ends()

    errors = [state_of(run).details["error"].partition("; its log")[0] for run in waiting.runs[:2]]
    assert errors == ["AcceleratorError: CUDA error: device-side assert triggered", "killed"]


def test_a_run_that_somebody_has_submitted_again_stays_in_the_queue(waiting: Waiting) -> None:
    again = {"job": "9_0", "time": "2999-01-01T00:00:00+00:00", "log": "log"}
    Ledger(waiting.runs[0]).write(QUEUED, again)

    waiting.ends()

    assert (state_of(waiting.runs[0]).name, Ledger(waiting.runs[0]).read(QUEUED)) == ("queued", again)


def test_one_look_reads_the_folder_of_results_once_however_many_jobs_are_waited_for(
    waiting: Waiting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, monkeypatch, squeue="for place in 0 1 2 3; do echo 7 $place RUNNING; done")
    touched: list[float] = []
    monkeypatch.setattr(Path, "chmod", lambda *_: touched.append(waiting.passed))

    def result_at_100() -> None:
        if waiting.passed >= 100:
            for place in waiting.jobs:
                waiting.leaves(place, ("success", None))

    waiting.then = result_at_100
    waiting.ends()

    assert len(touched) == len(set(touched)), touched
    assert touched[:3] == [0, 2, 4]  # every 2 s at first, then after a tenth of what has passed
    assert touched[-1] - touched[-2] == pytest.approx(touched[-2] / 10)


def test_jobs_that_a_silent_queue_may_have_are_not_submitted_again(
    waiting: Waiting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, monkeypatch, squeue="exit 1")

    with pytest.raises(SweepError, match=r"SLURM's queue does not answer, and may have job 7_0 for .*: try again when squeue"):
        waiting.launcher.launch([["method=red"]] * 4, 0)


def test_status_shows_jobs_that_the_queue_has_lost_as_killed_and_leaves_their_ledgers(
    waiting: Waiting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in waiting.runs:
        Ledger(run).status("running", host="another")
    Ledger(waiting.runs[2]).status("preempted")
    commands(tmp_path, monkeypatch, squeue="echo '7 3 RUNNING'")
    before = [(run / "status.json").read_bytes() for run in waiting.runs]

    with alone(waiting.runs[1] / LOCK, ""):  # somebody runs it without SLURM
        assert main(["status", str(tmp_path)]) == 0

    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["killed", "running", "preempted", "running"]
    assert [(run / "status.json").read_bytes() for run in waiting.runs] == before


def test_status_believes_the_ledgers_where_the_queue_does_not_answer(
    waiting: Waiting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(waiting.runs[0]).status("running", host="another")
    commands(tmp_path, monkeypatch, squeue="exit 1")

    assert main(["status", str(tmp_path)]) == 0

    assert capsys.readouterr().out.startswith("running ")
