"""A plug-in of vLLM, found by its entry point: a request for model="run@1.5" gets the LoRA of that run at strength 1.5.

    ALIGNLAB_RUNS=runs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_PLUGINS=alignlab \\
        vllm serve BASE --enable-lora --max-lora-rank 64

`run` is the path of a finished run, or of an adapter, below ALIGNLAB_RUNS; without @ the strength is 1. A folder per strength
is written below ALIGNLAB_LORAS (default: a folder of this process), and stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from alignlab.errors import AlignlabError, ControlError, RunFolderError
from alignlab.files import alone

log = logging.getLogger(__name__)
RUNS, LORAS = "ALIGNLAB_RUNS", "ALIGNLAB_LORAS"
"""Of the environment."""


def register() -> None:
    """Called by vLLM when it starts; without ALIGNLAB_RUNS nothing is registered."""
    runs = os.environ.get(RUNS)
    if not runs:
        log.warning("alignlab's LoRA resolver is off: set %s to the folder of runs", RUNS)
        return
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    root = Path(runs)
    folder = Path(os.environ.get(LORAS) or tempfile.mkdtemp(prefix="alignlab-loras-"))

    class RunResolver(LoRAResolver):
        """Answers for names of runs; None, for any other, lets vLLM refuse."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            try:
                place = await asyncio.to_thread(folder_for, lora_name, root, folder)
            except AlignlabError as error:
                log.warning("%s: %s", lora_name, error)
                return None
            number = int(hashlib.sha256(str(place).encode()).hexdigest()[:7], 16) + 1
            return LoRARequest(lora_name=lora_name, lora_path=str(place), lora_int_id=number)

    LoRAResolverRegistry.register_resolver("alignlab", RunResolver())


def folder_for(name: str, runs: Path, loras: Path) -> Path:
    """The LoRA folder for `run` or `run@strength`, written where it is asked for the first time, or where the run has changed.

    Raises RunFolderError for a run that is not below `runs`, ControlError for a strength that is no finite number, ModelError
    for a run whose adapter is no plain LoRA.
    """
    from alignlab.finished import result_of
    from alignlab.tuners.engines import TENSORS, scaled_lora

    run, at, asked = name.rpartition("@")
    run, asked = (run, asked) if at else (name, "1")
    try:
        strength = float(asked)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise ControlError(f"{asked!r} is no strength; ask for RUN@NUMBER, such as {run}@1.5.")
    place = (runs / run).resolve()
    if not run or not place.is_relative_to(runs.resolve()) or not place.is_dir():
        raise RunFolderError(f"there is no run {run!r} below {runs}; give its path there, without its beginning.")
    adapter = result_of(place)
    tensors = adapter / TENSORS
    version = tensors.stat().st_mtime_ns if tensors.is_file() else 0
    mark = hashlib.sha256(f"{place} {version}".encode()).hexdigest()[:12]
    to = loras / f"{place.name}-{mark}" / f"strength-{strength!r}"
    to.parent.mkdir(parents=True, exist_ok=True)
    with alone(to.with_name(f".{to.name}.lock"), f"waits for another process that writes {to}", stays=False):
        if not to.is_dir():
            scaled_lora(adapter, to, strength)
    return to
