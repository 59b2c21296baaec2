"""How long `run.py` takes to say what it can say without torch.

    python benchmarks/startup.py [--runs 7]

Wall time of --help, --cfg job and a config error, each in a new process, after one call that is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RUN = Path(__file__).parents[1] / "run.py"
CASES = {
    "--help": ["--help"],
    "--cfg job": ["--cfg", "job"],
    "unknown choice": ["method=dop"],
    "unknown key": ["method.lr=1"],
    "wrong type": ["method.fit.batch=many"],
    "misfit": ["method=pretrain", "data=hh_rlhf"],
}


def main(given: Sequence[str] | None = None) -> None:
    """Prints the median and the range of each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args(given).runs
    for name, words in CASES.items():
        wall(words)
        seconds = sorted(wall(words) for _ in range(runs))
        print(f"{name:16} median {statistics.median(seconds):.2f} s  (n = {runs}, {seconds[0]:.2f} to {seconds[-1]:.2f})")


def wall(words: list[str]) -> float:
    """Seconds of one process. Raises RuntimeError for a traceback: each case is answered in words."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, str(RUN), *words], capture_output=True, check=False, text=True)
    if "Traceback" in done.stderr:
        raise RuntimeError(done.stderr)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
