"""Commands on runs that exist: `status`, the state of every run; `export`, a run for other engines; `push`, a run to the
hub; `sync`, offline W&B runs to the server."""

from __future__ import annotations

import argparse
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError, RunFolderError
from alignlab.evaluation.safe_range import read_range
from alignlab.files import held
from alignlab.sweeps.cluster import Queue
from alignlab.tracking.ledger import LOCK, QUEUED, Ledger, State, state_of
from alignlab.tracking.sweeps import SweepLedger, every_sweep, find_sweep

QUIET = ("done", "missing")
"""States that a sweep counts but does not list."""
ALIVE = ("queued", "running")
"""States that stay in the ledger if a cluster kills the job."""


def add_status(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("status", help="where every run is, from the ledgers: queued, running, done, failed, ...")
    parser.add_argument(
        "name", nargs="?", help="a sweep, such as red/toy/table1, whose jobs are all listed; or a folder of runs"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of runs")
    parser.set_defaults(run=_status)


def _status(given: argparse.Namespace) -> None:
    """One line per sweep and per job that is neither done nor missing; then the runs that belong to no sweep.

    A run that is queued or running by its ledger is shown as killed if SLURM's queue no longer has its job; the ledger is not
    changed.
    """
    root = Path(given.name) if given.name and Path(given.name).is_dir() else given.runs
    if given.name and root == given.runs:
        one = find_sweep(root, given.name)
        _show_sweep(one, _lost(_folders(one)), whole=True)
        return
    sweeps = [sweep for sweep in every_sweep(root) if _is_whole(sweep)]
    folders = [folder for sweep in sweeps for folder in _folders(sweep)]
    in_sweeps = {folder.resolve() for folder in folders}
    alone = [path.parent for path in sorted(root.glob("**/status.json")) if path.parent.resolve() not in in_sweeps]
    if not sweeps and not alone:
        raise RunFolderError(f"no run below {root}; give the folder that `paths.runs` names.")
    lost = _lost([*folders, *alone])
    for sweep in sweeps:
        _show_sweep(sweep, lost, whole=False)
    _show_runs([(str(folder), folder, _now(state_of(folder), folder, lost)) for folder in alone])


def _is_whole(sweep: SweepLedger) -> bool:
    """Whether the jobs of a sweep can be read; else it is told, and the others are shown."""
    try:
        sweep.jobs()
    except RunFolderError as error:
        print(f"{sweep.name}: damaged ({error})")
        return False
    return True


def _show_sweep(sweep: SweepLedger, lost: set[Path], *, whole: bool) -> None:
    placed = [(job, sweep.run_folder(job)) for job in sweep.jobs()]
    jobs = [(" ".join(job.overrides), folder, _now(sweep.state(job), folder, lost)) for job, folder in placed]
    counts = Counter(state.label for *_, state in jobs)
    summary = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(f"{sweep.name}: {len(jobs)} jobs ({summary})")
    _show_runs([job for job in jobs if whole or job[2].name not in QUIET])


def _show_runs(runs: Sequence[tuple[str, Path, State]]) -> None:
    for named, folder, state in runs:
        more = (
            state.progress
            or state.details.get("error", "")
            or (_holds(folder) if state.name == "done" else "")
            or (f"job {state.details['job']}" if "job" in state.details else "")
        )
        print(f"{state.label:11} {state.details.get('time', ''):26} {named}  {more}".rstrip())


def _holds(folder: Path) -> str:
    """Where a finished run was seen to hold, if that is known."""
    found = read_range(folder)
    if found is None:
        return ""
    where = f"from {found.low:g} to {found.high:g}" if found.low < found.high else f"at {found.low:g} alone"
    return f"holds {where} by {found.metric}"


def _folders(sweep: SweepLedger) -> list[Path]:
    return [sweep.run_folder(job) for job in sweep.jobs()]


def _lost(folders: Iterable[Path]) -> set[Path]:
    """The runs that are queued or running by their ledgers and whose jobs have left the queue."""
    if shutil.which("squeue") is None:
        return set()
    jobs = {folder: job for folder in folders if (job := _job(folder)) is not None}
    queue = Queue() if jobs else None
    return {folder for folder, job in jobs.items() if queue and queue.over(job)}


def _job(folder: Path) -> str | None:
    """The cluster job of a run that is queued or running by its ledger. None if a process holds the run's lock, and for another
    user's run: Queue has one's own jobs only."""
    queued = Ledger(folder).found(QUEUED)
    if "job" not in queued or state_of(folder).name not in ALIVE or held(folder / LOCK):
        return None
    with suppress(FileNotFoundError):  # the command that waits for the sweep has just removed it
        if (folder / QUEUED).stat().st_uid == os.getuid():
            return str(queued["job"])
    return None


def _now(state: State, folder: Path, lost: set[Path]) -> State:
    """The state of a run, read after the queue was asked, because the job may have finished in between."""
    return State("killed", state.details) if folder in lost and state.name in ALIVE else state


def add_export(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("export", help="a run for other engines: a plain checkpoint, a LoRA, GGUF, a control vector")
    parser.add_argument("folder", type=Path, metavar="run", help="a run folder")
    parser.add_argument("--to", required=True, type=Path, help="the folder to write")
    parser.add_argument(
        "--as",
        dest="form",
        default="plain",
        choices=["plain", "lora", "gguf", "control-vector"],
        help="plain: transformers loads it without alignlab; lora: PEFT, vLLM and llama.cpp, beside the backbone; gguf:"
        " llama.cpp; control-vector: RED's shift, for llama.cpp beside the backbone",
    )
    parser.add_argument(
        "--strength",
        nargs="+",
        type=float,
        default=[],
        metavar="S",
        help="default: 1; several: a folder strength-S for each",
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of plain and gguf")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that the run's model brings")
    parser.add_argument("--control", help="the class to export, for a run with classes; none: the model without any")
    parser.set_defaults(run=_export)


def _export(given: argparse.Namespace) -> None:
    """Writes the run in another form, and says how far what was written is from it."""
    from alignlab.exports import export

    for made in export(
        given.folder,
        given.to,
        given.form,
        given.dtype,
        given.control,
        given.strength,
        trust_remote_code=given.trust_remote_code,
    ):
        print(f"exported to {made.place}: {made.written}; largest difference of logits {made.difference:.3g}")
        if made.note:
            print(f"  {made.note}")


def add_push(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("push", help="a run's adapter with its card and measurements to a repository of the hub")
    parser.add_argument("folder", type=Path, metavar="run", help="a run folder")
    parser.add_argument("repo", help="OWNER/NAME on the hub; made where it does not exist")
    parser.add_argument("--dry-run", action="store_true", help="write the folder --to, and upload nothing")
    parser.add_argument("--to", type=Path, help="the folder that --dry-run writes; default: NAME")
    parser.add_argument("--license", help="of the base, as the hub names licences; default: what the base's card says")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.set_defaults(run=_push)


def _push(given: argparse.Namespace) -> None:
    """Writes the folder, uploads it, and prints where it is."""
    from alignlab.hub import push

    if given.to and not given.dry_run:
        raise ConfigError("--to is where --dry-run writes; add --dry-run, or leave --to out.")
    to = (given.to or Path(given.repo.rpartition("/")[2])) if given.dry_run else None
    made = push(given.folder, given.repo, to, license=given.license, private=given.private)
    print(f"written: {made}" if given.dry_run else f"pushed to {made}")


def add_sync(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("sync", help="upload the W&B runs that were kept offline; what is uploaded is marked")
    parser.add_argument("folder", nargs="?", default="runs", type=Path, help="the folder of runs; default: runs")
    parser.set_defaults(run=_sync)


def _sync(given: argparse.Namespace) -> None:
    """Uploads, and prints how many runs were uploaded."""
    from alignlab.tracking.weights_and_biases import sync

    print(f"uploaded {sync(given.folder)} runs")
