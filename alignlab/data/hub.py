"""Rows of a data set on the hub, by name and revision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignlab.errors import DataError


def rows(
    name: str, split: str, revision: str | None, limit: int | None, folder: str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (name/split:number, fields). Raises DataError, cause kept, where the hub cannot be reached."""
    from datasets import load_dataset

    try:
        table = load_dataset(name, data_dir=folder, split=split, revision=revision)
    except Exception as error:  # the hub's client raises a dozen kinds; all of them mean the same to the user
        raise DataError(
            f"data set {name!r} could not be read from the hub ({type(error).__name__}: {error}); without a network, give"
            " data.path, a folder with the files."
        ) from error
    for number in range(len(table) if limit is None else min(limit, len(table))):
        yield f"{'/'.join(filter(None, (name, folder, split)))}:{number + 1}", dict(table[number])
