"""The import hook, each case in an interpreter of its own; a stand-in for peft where only the import matters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import get_peft_model
from transformers import PreTrainedModel

from alignlab.tuners.red import RedConfig

INSTALL = "import sys; import alignlab.tuners.peft_hook as hook; hook.install()\n"
KNOWN = "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as known; assert 'RED' in known\n"
# A room of the stand-in: it reads something that only a finished import of peft has.
ROOM = "import peft\nassert peft.last_line\n"
STANDIN = INSTALL.replace("hook.install()", "hook.ROOMS = ('room',); hook.install()")


def _run(script: str, folder: Path | None = None) -> str:
    """What the script says on its way down; empty if it ran through. Warnings are errors in there too."""
    places = {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])} if folder else {}
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **places}, cwd=folder).stderr


@pytest.fixture
def standin(tmp_path: Path) -> Path:
    """A folder with an empty package `peft` and a module `room` that is there to be imported after it."""
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text("from peft import part\nlast_line = True\n")
    (tmp_path / "peft" / "part.py").write_text("import sys\nif hasattr(sys, 'broken'):\n    raise ImportError('broken')\n")
    (tmp_path / "room.py").write_text(ROOM)
    return tmp_path


@pytest.mark.parametrize("first", ["import peft", "from peft.utils import PeftType"])
def test_importing_peft_afterwards_registers(first: str) -> None:
    assert _run(INSTALL + first + "\n" + KNOWN) == ""


@pytest.mark.parametrize("first", ["import alignlab.tuners.red.layer", "import alignlab.tuners.peft_types, peft"])
def test_importing_our_own_rooms_first_registers(first: str) -> None:
    assert _run(INSTALL + first + "\n" + KNOWN) == ""


def test_adapter_folder_loads_with_plain_peft(build: Callable[[str], PreTrainedModel], tmp_path: Path) -> None:
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    get_peft_model(base, RedConfig()).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    script = (
        "import warnings; warnings.filterwarnings('ignore', '`is_gradient_checkpointing`', FutureWarning)\n"
        "from peft import PeftModel; from transformers import LlamaForCausalLM as Llama\n"
        "model = PeftModel.from_pretrained(Llama.from_pretrained('base'), 'adapter')\n"
        "sys.exit(str(model.active_peft_config.peft_type))\n"
    )

    said = _run(INSTALL + script, tmp_path)

    assert said.splitlines()[-1] == "PeftType.RED"


def test_installing_imports_nothing_heavy() -> None:
    assert _run(INSTALL + "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)") == ""


def test_peft_that_is_already_there_is_served_at_once() -> None:
    assert _run("import peft\n" + INSTALL + KNOWN) == ""


def test_importing_a_part_of_peft_registers(standin: Path) -> None:
    assert _run(STANDIN + "import peft.part; assert 'room' in sys.modules", standin) == ""


def test_installing_twice_leaves_one_finder_and_then_none(standin: Path) -> None:
    count = "count = lambda: sum(type(finder).__name__ == '_PeftFinder' for finder in sys.meta_path)\n"

    said = _run(STANDIN + "hook.install()\n" + count + "assert count() == 1; import peft; assert count() == 0", standin)

    assert said == ""


def test_looking_for_peft_does_not_import_it(standin: Path) -> None:
    script = "from importlib.util import find_spec; assert find_spec('peft').origin.endswith('__init__.py')\n"

    said = _run(STANDIN + script + "assert 'peft' not in sys.modules; import peft; assert 'room' in sys.modules", standin)

    assert said == ""


def test_loader_of_peft_is_as_it_was(standin: Path) -> None:
    script = (
        "import inspect, importlib.resources, peft\n"
        "from importlib.machinery import SourceFileLoader\n"
        "assert type(peft.__loader__) is SourceFileLoader and peft.__spec__.loader is peft.__loader__\n"
        "assert 'exec_module' not in vars(peft.__loader__)\n"
        "assert 'last_line' in inspect.getsource(peft)\n"
        "assert importlib.resources.files('peft').joinpath('part.py').is_file()\n"
    )

    assert _run(STANDIN + script, standin) == ""


def test_peft_can_be_reloaded(standin: Path) -> None:
    assert _run(STANDIN + "import importlib, peft; importlib.reload(peft); assert 'room' in sys.modules", standin) == ""


def test_second_attempt_after_a_failed_import_registers(standin: Path) -> None:
    attempt = "sys.broken = True\ntry:\n    import peft\nexcept ImportError as error:\n    assert str(error) == 'broken'\n"

    said = _run(STANDIN + attempt + "assert 'room' not in sys.modules; del sys.broken; import peft\n" + ROOM, standin)

    assert said == ""


def test_missing_peft_is_still_an_ordinary_import_error(standin: Path) -> None:
    said = _run(STANDIN + "sys.meta_path[1:] = []; import peft", standin)

    assert "ModuleNotFoundError: No module named 'peft'" in said


def test_room_that_fails_does_not_take_peft_down(standin: Path) -> None:
    (standin / "room.py").write_text("raise RuntimeError('no room')")

    said = _run("import warnings; warnings.simplefilter('default')\n" + STANDIN + "import peft; peft.last_line", standin)

    assert "RuntimeWarning: room could not be registered with this peft: no room" in said
    assert "Traceback" not in said
