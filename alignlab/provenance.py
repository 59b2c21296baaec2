"""Where a result came from: versions, commit, hardware."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("alignlab", "torch", "transformers", "peft", "accelerate", "datasets", "hydra-core", "wandb", "numpy")


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run; no path and no user name."""
    import torch

    return {
        "python": sys.version.split()[0],
        "packages": {name: package_version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len((_git("status", "--porcelain") or "").splitlines()),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def package_version(name: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
