"""Tables of results: `folders` of all runs below a folder, `sweep` of the jobs of a sweep, `render` writes them as text."""

from __future__ import annotations

from pathlib import Path

from alignlab.command_line import experiment_folders


def experiments_with(name: str) -> Path:
    """The folder of experiments with the published numbers of a sweep; alignlab's own where none has."""
    from alignlab.tables.render import path_for

    return next((folder for folder in experiment_folders() if path_for(name, folder).is_file()), experiment_folders()[0])
