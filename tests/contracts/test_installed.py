"""What `pip install` puts into an environment: the command, the configs inside the package, and Hydra's plug-ins."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("alignlab", "conf", "experiments", "hydra_plugins", "pyproject.toml", "README.md", "LICENSE", "run.py")
BUILD = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel and an sdist, built from a copy of the sources."""
    copy, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-c", BUILD, str(target)], cwd=copy, check=True, capture_output=True, timeout=120)
    return target


def names(folder: Path) -> set[str]:
    """The files of a checkout that a run reads, as the package has them."""
    configs = [path for part in ("conf", "experiments") for path in (folder / part).rglob("*") if ".yaml" in path.name]
    numbers = (folder / "experiments").rglob("*.csv*")
    code = [path for part in ("alignlab", "hydra_plugins") for path in (folder / part).rglob("*.py")]
    models = (folder / "alignlab" / "models" / "tiny").rglob("*.json")
    found = {path.relative_to(folder).as_posix() for path in (*configs, *numbers, *code, *models) if path.is_file()}
    inside = {name: name.replace("experiments/", "alignlab/conf/experiment/", 1) for name in found if name.startswith("exp")}
    inside |= {name: f"alignlab/{name}" for name in found if name.startswith("conf/")}
    return {inside.get(name, name) for name in found}


def test_the_wheel_holds_the_code_the_configs_the_experiments_and_the_embedded_models(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
        commands = wheel.read(next(name for name in held if name.endswith("entry_points.txt"))).decode()

    assert names(ROOT) - held == set()
    assert {"alignlab/evaluation/judge_prompts.json", "alignlab/plots/report.html.j2", "alignlab/py.typed"} <= held
    assert "[console_scripts]\nalignlab = alignlab.__main__:main\n" in commands
    assert {name.partition("/")[0] for name in held if "dist-info" not in name} == {"alignlab", "hydra_plugins"}


def test_the_sdist_holds_what_the_wheel_is_built_from(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}

    assert (names(ROOT) | {"pyproject.toml", "README.md", "LICENSE"}) - held == set()
    assert not any(member.partition("/")[0] == "tests" for member in held)


@pytest.mark.slow
def test_an_installed_wheel_runs_a_sweep_and_reads_it_in_any_folder(built: Path, tmp_path: Path) -> None:
    environment, here = tmp_path / "environment", tmp_path / "here"
    here.mkdir()
    venv.create(environment, with_pip=False)
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # the dependencies; alignlab itself is not in it

    def called(*words: str) -> str:
        done = subprocess.run(list(words), cwd=here, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"))
    called(*pip, "install", "-q", "--no-deps", "--no-index", str(next(built.glob("*.whl"))))
    alignlab = str(environment / "bin" / "alignlab")
    small = ("scale=smoke", "tracking=off", "paths.runs=runs")

    where = called(str(environment / "bin" / "python"), "-c", "import alignlab; print(alignlab.__file__)").strip()
    assert Path(where).is_relative_to(packages)
    assert called(alignlab, "--version").startswith("alignlab 0.")
    assert "usage: alignlab run " in called(alignlab, "run", "--help")
    name = "red/toy/table1+scale=smoke"
    called(alignlab, "run", "experiment=red/toy/table1/red", "seed=0", *small)
    assert f"{name}: 1 jobs (1 done)" in called(alignlab, "status")
    assert "Source: experiments/red/table1/published.csv." in called(alignlab, "table", name)
    called(alignlab, "plot", name, "--to", "curves.png", "--kind", "curves")
    called(alignlab, "report", name, "--to", "report.html")
    called(alignlab, "run", "folder=sft", "method=sft", *small)
    called(alignlab, "export", "sft", "--to", "plain")
    assert (here / "plain" / "model.safetensors").is_file()
