"""What may import what, and what stays light. The floors themselves are import-linter's, in pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "alignlab"
LIGHT = ["alignlab", "alignlab.config", "alignlab.command_line", "alignlab.__main__", "alignlab.data.local"]
HEAVY = ("torch", "transformers", "peft", "datasets", "wandb", "matplotlib", "scipy")


@pytest.mark.parametrize("module", LIGHT)
def test_what_a_config_needs_imports_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "[]"


def configs_and_packages() -> list[Path]:
    """The config classes, the methods and the packages' own modules, which Hydra's side reads."""
    patterns = ("*/config.py", "*/__init__.py", "methods/*.py", "methods/*/__init__.py")
    return sorted({path for pattern in patterns for path in PACKAGE.glob(pattern)})


@pytest.mark.parametrize("path", configs_and_packages(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_configs_and_doors_import_nothing_heavy_at_their_top(path: Path) -> None:
    statements = ast.parse(path.read_text(encoding="utf-8")).body

    names = [alias.name for statement in statements if isinstance(statement, ast.Import) for alias in statement.names]
    names += [statement.module or "" for statement in statements if isinstance(statement, ast.ImportFrom)]

    assert not {name.partition(".")[0] for name in names} & set(HEAVY)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_says_what_it_is_and_can_be_read_at_one_sitting(path: Path) -> None:
    source = path.read_text(encoding="utf-8")

    assert ast.get_docstring(ast.parse(source))
    assert source.count("\n") <= 450


def test_an_unknown_name_of_the_package_is_answered_with_what_it_offers() -> None:
    import alignlab

    with pytest.raises(AttributeError, match="no attribute 'Polisy'; it offers ClmConfig, ControlConfig, Policy, "):
        _ = alignlab.Polisy
