"""W&B: offline unless the user is logged in, opened before the Trainer, closed as failed when the job fails."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from alignlab.tracking.config import WandbConfig
from alignlab.tracking.tracker import Identity, NoTracker, Tracker

log = logging.getLogger(__name__)
FLUSH_SECONDS = 2
"""wandb's own 15 s would lose most of a short run that is killed."""


class WandbTracker:
    """One wandb run. After the first failure it stays silent: the ledger has everything."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics; the step is kept as a value, since stages count anew."""
        self._guarded(lambda run: run.log({**values, "step": step}))

    def results(self, rows: Sequence[Mapping[str, Any]], figures: Sequence[Path]) -> None:
        """The table of results and the figures as images."""
        self._guarded(lambda run: run.log(_media(rows, figures)))

    def close(self, *, failed: bool) -> None:
        """Ends the run with an exit code, so that a crash does not look finished."""
        self._guarded(lambda run: run.finish(exit_code=int(failed)))

    def _guarded(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # an outage of a tracker must not stop a training
            log.warning("W&B stopped working (%s); the run goes on, its ledger is complete.", error)
            self._run = None


def open_run(config: WandbConfig, identity: Identity) -> Tracker:
    """An open run, or no tracker (with a warning) where wandb cannot start. Never asks for a login."""
    try:
        import wandb

        run = wandb.init(
            project=config.project,
            entity=config.entity,
            id=identity.id,
            name=identity.name,
            group=identity.group,
            job_type=identity.job_type,
            tags=list(identity.tags),
            config=dict(identity.config),
            dir=str(identity.folder),
            mode=_mode(config),
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True,
                x_transaction_log_flush_interval=FLUSH_SECONDS,
                console="off",
                init_timeout=config.timeout_seconds,
            ),
        )
    except Exception as error:
        log.warning("W&B could not start (%s); the run goes on with its ledger alone.", error)
        return NoTracker()
    return WandbTracker(run)


def _mode(config: WandbConfig) -> Any:
    """As the sheet or WANDB_MODE says; `auto` is online for users who are logged in, else offline."""
    wanted = os.environ.get("WANDB_MODE") or config.mode
    if wanted != "auto":
        return wanted
    return "online" if os.environ.get("WANDB_API_KEY") or _has_login() else "offline"


def _has_login() -> bool:
    """Whether `wandb login` has left a key for its host in the user's netrc."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _media(rows: Sequence[Mapping[str, Any]], figures: Sequence[Path]) -> dict[str, Any]:
    import wandb

    columns = list(rows[0]) if rows else []
    table = wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in rows])
    return {"results": table, **{figure.stem: wandb.Image(str(figure)) for figure in figures}}
