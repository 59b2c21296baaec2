"""A tuner takes five places of the tree, a method four, a preference loss and a method of it four, a suite three: a copy of the
tree with one of each trains and passes, and the contract tests find what is new in the tables.

Pages that a command writes (docs/options.md, the map in docs/walkthrough.md) are not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("alignlab", "conf", "experiments", "hydra_plugins", "tests", "pyproject.toml", "run.py")
Change = tuple[str, str]
"""A text of a file and what takes its place; an empty text: the file is new."""

TUNER: dict[str, list[Change]] = {
    "alignlab/tuners/norms.py": [
        (
            "",
            '''"""Trains the norms' weights."""

from alignlab.tuners.weights import WeightsTuner


def build(config, model):
    """The last norm, or all."""
    names = [name for name, _ in model.named_parameters() if "norm" in name]
    return WeightsTuner(model, names[-1:] if config.last_only else names)
''',
        )
    ],
    "alignlab/tuners/config.py": [
        (
            "@dataclass\nclass FullConfig(",
            '@dataclass\nclass NormsConfig(TunerConfig):\n    """The norms."""\n\n    last_only: bool\n\n\n'
            "@dataclass\nclass FullConfig(",
        )
    ],
    "alignlab/tuners/__init__.py": [
        ("    LowerLoraConfig,\n", "    LowerLoraConfig,\n    NormsConfig,\n"),
        (
            '        "full": Entry(',
            '        "norms": Entry(NormsConfig, deferred(f"{__name__}.norms.build", first=2)),\n        "full": Entry(',
        ),
    ],
    "conf/tuner/norms.yaml": [
        (
            "",
            "name: norms\nlast_only: false            # the last norm only\nlikelihood_rate: 1.0e-2\npreference_rate: 1.0e-3\n",
        )
    ],
    "tests/contracts/table.py": [
        ("CASES = (\n", 'CASES = (\n    Case("norms", "llama", {"last_only": True}, per_row=False),\n')
    ],
}
METHOD: dict[str, list[Change]] = {
    "alignlab/methods/twice.py": [
        (
            "",
            '''"""Two likelihood stages, one after the other."""

from dataclasses import dataclass

from alignlab.data.encode import chosen
from alignlab.methods.config import MethodConfig
from alignlab.registry import Entry, capabilities
from alignlab.training.config import FitConfig


@dataclass
class TwiceConfig(MethodConfig):
    """Both stages."""

    name: str
    first: FitConfig
    second: FitConfig

    def fits(self):
        return {"first": self.first, "second": self.second}


def build(config):
    """`first` and `second`."""
    from alignlab.training.objectives import nll
    from alignlab.training.stages import Method, TrainStage

    return Method(config.name, tuple(TrainStage(name, "train", chosen, nll, fit) for name, fit in config.fits().items()))


ENTRY = Entry(TwiceConfig, build, requires=capabilities("chosen"), provides=capabilities("training"))
''',
        )
    ],
    "alignlab/methods/__init__.py": [
        ("rahf, tpt\n", "rahf, tpt, twice\n"),
        ('        "sft": ', '        "twice": twice.ENTRY,\n        "sft": '),
    ],
    "conf/method/twice.yaml": [
        (
            "",
            "defaults:\n  - /_fit@first\n  - /_fit@second\n  - _self_\nname: twice\n"
            'first: {steps: 1, batch: 8, learning_rate: "${tuner.likelihood_rate}"}\n'
            'second: {steps: 1, batch: 8, learning_rate: "${tuner.likelihood_rate}"}\n',
        )
    ],
    "pyproject.toml": [('    "alignlab.methods.rahf",\n', '    "alignlab.methods.rahf",\n    "alignlab.methods.twice",\n')],
}
LOSS: dict[str, list[Change]] = {
    "alignlab/training/objectives.py": [
        (
            "PREFERENCE_LOSSES: Mapping[",
            'def squared(ratios: Ratios, beta: float, smoothing: float) -> Tensor:\n    """The hinge, squared."""\n'
            "    return F.relu(1 - beta * ratios.gap_G) ** 2\n\n\nPREFERENCE_LOSSES: Mapping[",
        ),
        ('    "hinge": hinge,\n', '    "hinge": hinge,\n    "squared": squared,\n'),
    ],
    "alignlab/methods/preference.py": [('"hinge", "robust"', '"hinge", "squared", "robust"')],
    "alignlab/methods/__init__.py": [('        "dpo": ', '        "slack": preference.ENTRY,\n        "dpo": ')],
    "conf/method/slack.yaml": [
        (
            "",
            "defaults:\n  - /_preference@_here_\n  - _self_\nname: slack\nloss: squared\nbeta: 0.1\n"
            "prefer: {batch: 8}\nsft: {batch: 8}\n",
        )
    ],
}
SUITE: dict[str, list[Change]] = {
    "alignlab/evaluation/lengths.py": [
        (
            "",
            '''"""How long answers are."""

from alignlab.evaluation.statistics import bootstrap


class Lengths:
    """Characters of an answer."""

    def __init__(self, context):
        self._context = context

    def measure(self, point):
        """Mean number of characters."""
        return [bootstrap("characters", [float(len(text)) for text in self._context.answers(point)[1]])]
''',
        )
    ],
    "alignlab/evaluation/__init__.py": [
        (
            '    "fluency": SuiteEntry(',
            '    "lengths": SuiteEntry(\n        EvaluationConfig,\n        deferred(f"{__name__}.lengths.Lengths"),\n'
            '        requires=capabilities("generation"),\n        provides=capabilities("sampled texts"),\n'
            '        metrics=("characters",),\n    ),\n    "fluency": SuiteEntry(',
        )
    ],
    "conf/_evaluation.yaml": [("reward_model, judge]", "reward_model, judge, lengths]")],
}
SMALL = (
    "data.pairs=24 data.test_pairs=8 evaluation.prompts=4 evaluation.pairs=8 evaluation.max_new_tokens=4 tracking=off"
    " control.strengths=[1.0] trainer.device=cpu trainer.threads=1 folder=run"
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, with one of each."""
    folder = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    for kind in (TUNER, METHOD, LOSS, SUITE):
        for path, changes in kind.items():
            for before, after in changes:
                change(folder / path, before, after)
    return folder


def change(file: Path, before: str, after: str) -> None:
    """Writes a new file, or replaces a text that a file has once."""
    if not before:
        assert not file.exists()
        file.write_text(after, encoding="utf-8")
        return
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{before!r} in {file}"
    file.write_text(text.replace(before, after), encoding="utf-8")


def called(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in the copy, whose modules come before those of the project."""
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("kind", "most"), [(TUNER, 5), (METHOD, 4), (LOSS, 4), (SUITE, 3)], ids=["tuner", "method", "loss", "suite"]
)
def test_few_places_are_touched(kind: dict[str, list[Change]], most: int) -> None:
    assert len(kind) <= most


def test_the_new_method_trains_the_new_tuner_and_the_new_suite_measures_it(tree: Path) -> None:
    done = called(tree, "run.py", "method=twice", "tuner=norms", *SMALL.split())

    assert done.returncode == 0, done.stderr
    report = json.loads((tree / "run" / "report.json").read_text())
    assert "characters" in {row["metric"] for row in report["results"]}
    assert {path.name for path in (tree / "run" / "stages").iterdir()} == {"first", "second"}


def test_the_contracts_hold_for_the_new_tuner_and_find_the_new_methods_by_themselves(tree: Path) -> None:
    files = ("tests/contracts/test_tuners.py", "tests/contracts/test_methods.py")
    chosen = "norms or (slack and tiny and not gpt2 and (complete_folder or same_bits or never_having_stopped))"

    done = called(tree, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *files, "-k", chosen)

    assert done.returncode == 0, done.stdout
    passed = {line.rpartition("::")[2] for line in done.stdout.splitlines() if line.startswith("PASSED")}
    assert {name for name in passed if "[slack-" in name} == {
        "test_a_run_leaves_a_complete_folder[slack-tiny]",
        "test_the_same_seed_gives_the_same_bits[slack-tiny]",
        "test_resuming_equals_never_having_stopped[slack-tiny]",
    }
    assert any("norms" in name for name in passed)


def test_imports_point_down_with_the_new_method(tree: Path) -> None:
    done = called(tree, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))")

    assert done.returncode == 0, done.stdout
    assert "no method imports another KEPT" in done.stdout
