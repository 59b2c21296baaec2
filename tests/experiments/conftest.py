"""What the experiments' files name and a machine may lack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignlab.models.config import EMBEDDED


@pytest.fixture(scope="package", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of models in which `meet/local` finds its two by name; both are the embedded one."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("stories260k", "babyllama-byte361"):
        (folder / name).symlink_to(EMBEDDED / "tiny")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ALIGNLAB_MODELS", str(folder))
        patched.delenv("ALIGNLAB_DATA", raising=False)
        yield folder
