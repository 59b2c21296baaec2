"""The import hook, each case in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alignlab.tuners.red import RedConfig
from peft import get_peft_model
from transformers import PreTrainedModel

INSTALL = "import sys; import alignlab.tuners.peft_hook as hook; hook.install()\n"
KNOWN = "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as known; assert 'RED' in known\n"
ROOM = "'alignlab.tuners.red' in sys.modules"


def _run(script: str, **settings: str) -> str:
    """What the script says on its way down; empty if it ran through. Warnings are errors in there too."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script], check=False, capture_output=True, text=True, **settings
    ).stderr


def test_installing_imports_nothing_heavy() -> None:
    said = _run(INSTALL + "assert not {'torch', 'peft', 'transformers'} & set(sys.modules)")

    assert said == ""


@pytest.mark.parametrize(
    "first",
    ["import peft", "import peft.config", "from peft.utils import PeftType", "from transformers import Trainer; import peft"],
)
def test_importing_peft_afterwards_registers(first: str) -> None:
    assert _run(INSTALL + first + "\n" + KNOWN) == ""


@pytest.mark.parametrize(
    "first", ["import alignlab.tuners.red", "import alignlab.tuners.red.layer", "import alignlab.tuners.peft_types, peft"]
)
def test_importing_our_own_rooms_first_registers(first: str) -> None:
    assert _run(INSTALL + first + "\n" + KNOWN) == ""


def test_peft_that_is_already_there_is_served_at_once() -> None:
    assert _run("import sys, peft\n" + INSTALL + f"assert {ROOM}\n" + KNOWN) == ""


def test_installing_twice_leaves_one_finder_and_then_none() -> None:
    script = "count = lambda: sum(type(finder).__name__ == '_PeftFinder' for finder in sys.meta_path)\n"

    said = _run(INSTALL + "hook.install()\n" + script + "assert count() == 1; import peft; assert count() == 0")

    assert said == ""


def test_looking_for_peft_does_not_import_it() -> None:
    script = "from importlib.util import find_spec; assert find_spec('peft').origin.endswith('__init__.py')\n"

    said = _run(INSTALL + script + "assert 'peft' not in sys.modules; import peft\n" + KNOWN)

    assert said == ""


def test_loader_of_peft_is_as_it_was() -> None:
    script = (
        "import inspect, importlib.resources, peft\n"
        "from importlib.machinery import SourceFileLoader\n"
        "assert type(peft.__loader__) is SourceFileLoader and peft.__spec__.loader is peft.__loader__\n"
        "assert 'exec_module' not in vars(peft.__loader__)\n"
        "assert 'PeftModel' in inspect.getsource(peft)\n"
        "assert importlib.resources.files('peft').joinpath('config.py').is_file()\n"
    )

    assert _run(INSTALL + script) == ""


def test_peft_can_be_reloaded() -> None:
    assert _run(INSTALL + "import importlib, peft; importlib.reload(peft)\n" + KNOWN) == ""


def test_second_attempt_after_a_failed_import_registers() -> None:
    script = (
        "sys.modules['accelerate'] = None\n"
        "try:\n    import peft\n    raise SystemExit('the import should have failed')\nexcept ImportError:\n    pass\n"
        "del sys.modules['accelerate']; import peft\n"
    )

    assert _run(INSTALL + script + KNOWN) == ""


def test_missing_peft_is_still_an_ordinary_import_error() -> None:
    script = "sys.meta_path[1:] = []; sys.path_importer_cache.clear(); import peft"

    assert "ModuleNotFoundError: No module named 'peft'" in _run(INSTALL + script)


def test_room_that_fails_does_not_take_peft_down() -> None:
    script = "import warnings; warnings.simplefilter('default'); hook.ROOMS = ('alignlab.absent',)\n"

    said = _run(INSTALL + script + "import peft; peft.LoraConfig()")

    assert "RuntimeWarning: alignlab.absent could not be registered with this peft: No module named" in said
    assert "Traceback" not in said


def test_adapter_folder_loads_with_plain_peft(build: Callable[[str], PreTrainedModel], tmp_path: Path) -> None:
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    get_peft_model(base, RedConfig()).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    script = (
        "import warnings; warnings.filterwarnings('ignore', '`is_gradient_checkpointing`', FutureWarning)\n"
        "from peft import PeftModel; from transformers import LlamaForCausalLM as Llama\n"
        "PeftModel.from_pretrained(Llama.from_pretrained('base'), 'adapter').get_layer_status()\n"
    )

    said = _run(INSTALL + script, cwd=str(tmp_path))

    assert "Error" not in said
