"""Every error that alignlab raises on purpose: one tree; each message is one sentence for the user."""

from __future__ import annotations


class AlignlabError(Exception):
    """The root of the tree. `run.py` shows only the sentence of such an error, without a traceback."""


class ConfigError(AlignlabError):
    """A key, value or combination of choices that cannot run; raised before any weight is loaded."""


class DataError(AlignlabError):
    """A file, line or row that cannot be used; names the file and the row."""


class UnusableRowError(DataError):
    """A row that cannot be used and that may be left out instead; `reason` is what it is counted under."""

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class ModelError(AlignlabError):
    """A backbone or adapter that cannot be loaded, or that cannot do what was asked."""


class RunFolderError(AlignlabError):
    """A run folder that belongs to another config, is unfinished, or is missing a part."""


class DivergedError(AlignlabError):
    """The loss is no longer a finite number; names the stage, the step, and the last checkpoint."""


class FirstLossError(AlignlabError):
    """The first loss of a stage is not the one that is known beforehand, so the reference is wrong."""


class MeasureError(AlignlabError):
    """A finished run of which something that was asked for could not be measured; its report has the rest."""


class SweepError(AlignlabError):
    """A sweep that ended with failed jobs, whose errors were shown one by one."""


class ProcessError(AlignlabError):
    """Another process of this run has ended it and shows the reason."""


class ControlError(AlignlabError):
    """A strength or class that the tuner cannot honour."""


class StorageError(AlignlabError):
    """A disk that is full, fails, or may not be written; what is complete stays."""
