"""A table that is killed again and again ends with the same bits as one that never was, and nothing is done twice.

    python benchmarks/killed_sweep.py [--kills 3] [--seed 0] [--grid method=sft,dpo,red,clm model=tiny,tiny_gpt2 seed=0,1,2]

24 jobs (the grid: 4 methods x 2 models x 3 seeds) with few steps and a small evaluation. The sweep is killed by SIGKILL at
random moments, then started once more. Compared: every weight and every result of every job. Counted: jobs that were finished
before a start and were written again by it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RUN = Path(__file__).parents[1] / "run.py"
GRID = ["method=sft,dpo,red,clm", "model=tiny,tiny_gpt2", "seed=0,1,2"]
SETTINGS = [
    *("data.pairs=256", "evaluation.prompts=16", "evaluation.suites=[toy]", "control.strengths=[0.0,1.0]"),
    *("trainer.threads=1", "trainer.checkpoint_every_steps=5", "tracking=off"),
]


def main(words: Sequence[str] | None = None) -> None:
    """Prints what was killed when, and whether the claim holds; exit status 1 where it does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--grid", nargs="+", default=GRID, help="keys with the values that are crossed")
    given = parser.parse_args(words)
    jobs = math.prod(len(word.split(",")) for word in given.grid)
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        begun = time.perf_counter()
        start(Path(one), given.grid).wait()
        whole = time.perf_counter() - begun
        print(f"never killed: {len(finished(Path(one)))} of {jobs} jobs in {whole:.0f} s")
        again = 0
        for _ in range(given.kills):
            before = finished(Path(other))
            moment = moments.uniform(0.05, 0.3) * whole
            kill_after(start(Path(other), given.grid), moment)
            again += repeated(before, finished(Path(other)))
            print(f"killed after {moment:.0f} s: {len(finished(Path(other)))} of {jobs} jobs are finished")
        before = finished(Path(other))
        start(Path(other), given.grid).wait()
        again += repeated(before, finished(Path(other)))
        same = sum(results(Path(one))[job] == result for job, result in results(Path(other)).items())
    print(f"started once more: {same} of {jobs} jobs are equal to the bit, {again} were done twice")
    sys.exit(same != jobs or again > 0)


def start(runs: Path, grid: Sequence[str]) -> subprocess.Popen[bytes]:
    """The sweep, in a process of its own."""
    words = [sys.executable, str(RUN), "-m", *grid, *SETTINGS, f"paths.runs={runs}"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGKILL; nothing can be saved."""
    time.sleep(seconds)
    process.kill()
    process.wait()


def finished(runs: Path) -> dict[str, int]:
    """The finished jobs, and when their reports were written (ns)."""
    states = [path for path in runs.glob("*/*/status.json") if json.loads(path.read_text())["state"] == "done"]
    return {str(path.parent.relative_to(runs)): (path.parent / "report.json").stat().st_mtime_ns for path in states}


def repeated(before: dict[str, int], after: dict[str, int]) -> int:
    """Finished jobs whose report was written anew, or is gone."""
    return sum(after.get(job) != written for job, written in before.items())


def results(runs: Path) -> dict[str, str]:
    """A hash of everything that a job has learned and measured."""
    return {job: _hash(runs / job) for job in finished(runs)}


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted((*folder.glob("stages/*/result/**/*.safetensors"), folder / "report.json")):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
