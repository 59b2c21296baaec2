"""Where committed results come from: a commit that is in the history, the command, and every seed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEARCHED = {f"experiments/tiny/{name}.csv" for name in ("results", "results_clm")}
"""How rates were chosen: one seed, whose commands stand in experiments/tiny/README.md."""


def git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)


def results() -> list[str]:
    """Every file of results below experiments/."""
    found = [*ROOT.glob("experiments/**/results*.csv"), *ROOT.glob("experiments/**/results/*.csv")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


@pytest.mark.parametrize("name", [name for name in results() if name not in SEARCHED])
def test_results_name_a_command_and_a_commit_of_the_history(name: str) -> None:
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("this is no clone with its whole history")
    text = (ROOT / name).read_text(encoding="utf-8")

    (origin,) = re.findall(r"^# commit: (.*)$", text, re.MULTILINE)
    commits = [each.partition(",") for each in origin.split("; ")]

    assert re.search(r"^# command: python run\.py \S", text, re.MULTILINE)
    assert [commit for commit, _, state in commits if git("merge-base", "--is-ancestor", commit, "HEAD").returncode] == []
    assert {state.strip() for _, _, state in commits} == {"clean"}
    assert ",seed," in text


def test_only_searches_of_rates_have_no_origin() -> None:
    assert set(results()) >= SEARCHED
