"""What the experiments' files name and a machine may lack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from alignlab.models.config import EMBEDDED


@pytest.fixture(scope="package", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of models in which `meet/local` and `real/smollm` find theirs by name; all are the embedded one, apart from
    a note in its config, since models count by their content."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("stories260k", "babyllama-byte361", "smollm2-135m-instruct"):
        copytree(EMBEDDED / "tiny", folder / name)
        config = folder / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "note": name}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ALIGNLAB_MODELS", str(folder))
        patched.delenv("ALIGNLAB_DATA", raising=False)
        yield folder
