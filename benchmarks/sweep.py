"""What a sweep costs besides its jobs, and what sharing stages saves.

    python benchmarks/sweep.py [--repeats 3] [--jobs 1000]

plan: wall time of `plan=true` for 1,000 jobs (`--jobs`) that all differ, also of the longest config, and for a tenth as many
settings x 10 seeds, in a new process each.
frame: wall time of a job of one step without evaluation, from the second job of a multirun on: everything but training and
evaluation, and one step of both.
reuse: three sweeps whose jobs have a first stage in common, with the store and with force=true, which computes every stage.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RUN = Path(__file__).parents[1] / "run.py"
QUIET = ["tracking=off", "trainer.threads=1"]
SHARED = {
    "rahf, alpha": ["method=rahf", "method.alpha=1.0,2.0,5.0,8.0"],
    "meet, rate of the joint stage": ["method=meet", "method.joint.learning_rate=1e-4,3e-4,1e-3,3e-3"],
    "dpo behind sft, beta": ["method=dpo", "method.sft_first=true", "method.beta=0.05,0.1,0.5,1.0"],
}


def plans(jobs: int) -> dict[str, list[str]]:
    """Sweeps of so many jobs, a multiple of 10."""
    few = jobs // 10
    return {
        f"plan, {jobs:,} settings": [f"method.fit.learning_rate=range(0.0001,0.0101,{0.01 / jobs:g})"],
        f"plan, {jobs:,} settings of rahf": ["method=rahf", f"method.alpha=range(1.0,11.0,{10 / jobs:g})"],
        f"plan, {few:,} settings x 10 seeds": [
            f"method.fit.learning_rate=range(0.0001,0.0101,{0.01 / few:g})",
            "seed=range(10)",
        ],
    }


def main(words: Sequence[str] | None = None) -> None:
    """Prints medians and ranges; ratios where two things are compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1000, help="of a plan, a multiple of 10")
    given = parser.parse_args(words)
    for name, sweep in plans(given.jobs).items():
        tell(name, [wall(["-m", *sweep, *QUIET, "plan=true"]) for _ in range(given.repeats)])
    tell("frame, per job", [seconds for _ in range(given.repeats) for seconds in per_job(jobs=8)])
    for name, sweep in SHARED.items():
        compare(name, sweep, given.repeats)


def per_job(jobs: int) -> list[float]:
    """Seconds between the reports of one multirun's jobs, the first job aside."""
    with tempfile.TemporaryDirectory() as folder:
        wall(["-m", f"seed=range({jobs})", "method.fit.steps=1", "evaluation=off", *QUIET, f"paths.runs={folder}"])
        done = sorted(path.stat().st_mtime for path in Path(folder).glob("**/report.json"))
    assert len(done) == jobs
    return [later - earlier for earlier, later in itertools.pairwise(done)]


def compare(name: str, words: list[str], repeats: int) -> None:
    """The same sweep with shared stages and without, in turn."""
    ratios = []
    for _ in range(repeats):
        seconds = []
        for more in ([], ["force=true"]):
            with tempfile.TemporaryDirectory() as folder:
                seconds.append(wall(["-m", *words, "evaluation=off", *QUIET, *more, f"paths.runs={folder}"]))
        ratios.append(seconds[0] / seconds[1])
        print(f"{name}: {seconds[0]:.1f} s with shared stages, {seconds[1]:.1f} s without")
    tell(f"{name}, ratio", ratios, unit="")


def tell(name: str, numbers: list[float], unit: str = " s") -> None:
    """Median, number and range."""
    print(
        f"{name}: median {statistics.median(numbers):.2f}{unit} (n = {len(numbers)}, {min(numbers):.2f} to {max(numbers):.2f})"
    )


def wall(words: list[str]) -> float:
    """Seconds of one process; an error ends the benchmark with what it said."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, str(RUN), *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
