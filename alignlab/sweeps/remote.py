"""A job of a sweep on another machine: its words, and the code it runs with."""

from __future__ import annotations

import logging
import os
import runpy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignlab.command_line import show_words
from alignlab.errors import SweepError
from alignlab.sweeps.snapshot import ROOT


@dataclass(frozen=True)
class Command:
    """`python run.py WORDS`, as submitit runs it.

    `code`: the snapshot, in which the process was started; `home`: where the sweep was submitted, which relative paths are of.
    """

    words: tuple[str, ...]
    code: str
    home: str

    def __call__(self) -> float | None:
        """Runs it; returns the headline number."""
        from hydra import compose, initialize_config_dir

        if Path(self.code).resolve() != ROOT.resolve():
            raise SweepError(f"this job has its code from {ROOT} and not from its snapshot {self.code}; clear PYTHONPATH.")
        os.chdir(self.home)
        _join()
        show_words(logging.INFO)
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            raw = compose("run", list(self.words))
        value: float | None = runpy.run_path(str(ROOT / "run.py"))["run"](raw)
        return value

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue after a signal: the same, which goes on by itself; force counts once."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(replace(self, words=(*self.words, "force=false")))


def _join() -> None:
    """Tells torch of the other processes of this job, as torchrun would."""
    from submitit.helpers import JobEnvironment, TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
