"""W&B: offline unless the user is logged in, opened before the Trainer, closed as failed when the job fails; and the upload of
offline runs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.errors import RunFolderError
from alignlab.tracking import Identity, NoTracker, Tracker, WandbConfig
from alignlab.tracking.ledger import state_of

log = logging.getLogger(__name__)
FLUSH_SECONDS = 2
"""wandb's own 15 s would lose most of a short run that is killed."""
TABLE = "results"
"""Key of the table of results."""
KEPT = "the run is kept offline: `python -m alignlab sync` uploads it."


class WandbTracker:
    """One wandb run. After the first failure of wandb it does nothing; the ledger is complete."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics; the step is kept as a value, since stages count anew."""
        self._guarded(lambda run: run.log({**values, "step": step}))

    def results(self, rows: Sequence[Mapping[str, Any]], figures: Sequence[Path]) -> None:
        """The table of results and the figures as images."""
        self._guarded(lambda run: run.log(_media(run, rows, figures)))

    def pause(self) -> None:
        """Marks the run as preempted: to W&B neither finished nor failed, until a run with its id resumes it."""
        self._guarded(lambda run: run.mark_preempting())
        self._guarded(lambda run: run.finish(exit_code=1))  # W&B's way: the mark, then an end that is not 0
        self._run = None

    def close(self, *, failed: bool) -> None:
        """Ends the run with an exit code, so that a crash does not look finished."""
        self._guarded(lambda run: run.finish(exit_code=int(failed)))

    def _guarded(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # an outage of a tracker must not stop a training
            log.warning("W&B stopped working (%s); the run continues, and its own files are complete.", error)
            self._run = None


def open_run(config: WandbConfig, identity: Identity) -> Tracker:
    """An open run, or no tracker (with a warning) where wandb cannot start. Never asks for a login.

    A run that cannot reach its server is kept offline, for `sync`.
    """
    try:
        mode = _mode(config)
        try:
            return WandbTracker(_start(config, identity, mode))
        except Exception as error:
            if mode != "online":
                raise
            log.warning("W&B cannot be reached (%s); %s", error, KEPT)
            import wandb

            wandb.teardown()  # it still has the run open that it could not start
            return WandbTracker(_start(config, identity, "offline"))
    except Exception as error:
        log.warning("W&B could not start (%s); the run continues without it.", error)
        return NoTracker()


def _start(config: WandbConfig, identity: Identity, mode: Any) -> Any:
    import wandb

    return wandb.init(
        project=config.project,
        entity=config.entity,
        id=identity.id,
        name=identity.name,
        group=identity.group,
        job_type=identity.job_type,
        tags=list(identity.tags),
        config=_shown(identity.config),
        dir=str(identity.folder),
        mode=mode,
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(
            silent=True,
            x_transaction_log_flush_interval=FLUSH_SECONDS,
            console="off",
            init_timeout=config.timeout_seconds,
            finish_timeout=config.timeout_seconds,
            finish_timeout_raises=True,
            # Host name, command line, paths and the address of the repository stay here.
            host="",
            x_disable_meta=True,
            disable_git=True,
        ),
    )


def _shown(value: Any) -> Any:
    """A config without the places of this machine: of a path that is absolute, or leads out of a folder, its last part."""
    if isinstance(value, Mapping):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(inner) for inner in value]
    if not isinstance(value, str):
        return value
    prefix, colon, place = value.rpartition(":")
    return f"{prefix}{colon}{Path(place).name}" if place.startswith(("/", "~", "..")) else value


def _mode(config: WandbConfig) -> Any:
    """As WANDB_MODE or the config says; `auto` is online for users who are logged in, else offline."""
    wanted = os.environ.get("WANDB_MODE") or config.mode
    if wanted not in ("auto", "online"):
        return wanted
    import wandb

    if wandb.login(prompt=False, verify=False):
        return "online"
    if wanted == "online":
        log.warning("nobody is logged in to W&B here (`wandb login`); %s", KEPT)
    return "offline"


def _media(run: Any, rows: Sequence[Mapping[str, Any]], figures: Sequence[Path]) -> dict[str, Any]:
    import wandb

    columns = list(rows[0]) if rows else []
    table = wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in rows])
    # Bound by hand: wandb would else keep a second copy, an artifact, in the user's home and note down that path.
    table.bind_to_run(run, TABLE, run.step)
    return {TABLE: table, **{figure.stem: wandb.Image(str(figure)) for figure in figures}}


def sync(folder: Path) -> int:
    """Uploads every offline run below a folder with `wandb sync`, which joins the parts of one run by its id, oldest first, and
    writes a `.synced` file next to each uploaded part. A run that is still running is left out. Returns the number of uploaded
    runs.

    Raises RunFolderError if there is no offline run, and if some could not be uploaded, with wandb's reason.
    """
    found = sorted(folder.glob("**/wandb/offline-run-*/run-*.wandb"))
    if not found:
        raise RunFolderError(f"no offline W&B run below {folder}; give the folder that `paths.runs` names.")
    waiting = _waiting(found)
    still = [part for part in waiting if state_of(part.parents[2]).name == "running"]
    if still:
        log.info("%d runs are still running; the next sync uploads them", _runs(still))
    ready = [part for part in waiting if part not in still]
    said = _run_wandb("sync", *(str(part.parent) for part in ready)) if ready else ""
    left = _waiting(ready)
    if left:
        raise RunFolderError(
            f"{_runs(left)} of {_runs(ready)} offline runs below {folder} could not be uploaded ({said}); nothing is lost,"
            " the same command tries again."
        )
    return _runs(ready)


def _waiting(parts: list[Path]) -> list[Path]:
    """Those that wandb has not marked as uploaded."""
    return [part for part in parts if not part.with_suffix(".wandb.synced").exists()]


def _runs(parts: list[Path]) -> int:
    """How many runs; a resumed run has several parts with its id."""
    return len({part.name for part in parts})


def _run_wandb(*arguments: str) -> str:
    """Runs wandb's command line without input, copies its output to stderr and returns the last line."""
    online = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", *arguments]
    last = ""
    with subprocess.Popen(
        command, env=online, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            last = line.strip() or last
            sys.stderr.write(line)
    return last
