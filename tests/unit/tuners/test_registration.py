"""When RED, CLM and CONTROL become known to PEFT, each case in an interpreter of its own."""

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

KNOWN = (
    "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as known, PEFT_TYPE_TO_CONFIG_MAPPING as configs\n"
    "assert {'RED', 'CLM', 'CONTROL'} <= {*known} & {*configs}\n"
)


def _run(script: str, folder: Path | None = None) -> str:
    """What the script prints as errors; empty if it ran through. Warnings are errors in there too."""
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ}, cwd=folder).stderr


def test_peft_that_is_already_there_is_served_at_once() -> None:
    assert _run(f"from peft import PeftModel\nimport alignlab\n{KNOWN}") == ""


def test_any_public_name_registers_before_peft_is_imported() -> None:
    assert _run(f"from alignlab import RedConfig\nimport peft\n{KNOWN}") == ""


@pytest.mark.parametrize("package", ["red", "clm", "control"])
def test_a_package_alone_registers_its_own_method(package: str) -> None:
    script = f"import alignlab.tuners.{package}\nfrom peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as known\n"

    assert _run(f"{script}assert '{package.upper()}' in known") == ""


@pytest.mark.parametrize("script", ["import peft, alignlab", "import alignlab, peft; alignlab.at_strength"])
def test_adapter_folder_loads_with_plain_peft(script: str, build: Callable[[str], PreTrainedModel], tmp_path: Path) -> None:
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    get_peft_model(base, RedConfig()).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    more = (
        "import sys, warnings; warnings.filterwarnings('ignore', '`is_gradient_checkpointing`', FutureWarning)\n"
        "from peft import PeftModel; from transformers import LlamaForCausalLM as Llama\n"
        "model = PeftModel.from_pretrained(Llama.from_pretrained('base'), 'adapter')\n"
        "sys.exit(str(model.active_peft_config.peft_type))\n"
    )

    said = _run(f"{script}\n{more}", tmp_path)

    assert said.splitlines()[-1] == "PeftType.RED"


def test_importing_alignlab_alone_imports_nothing_heavy() -> None:
    assert _run("import sys, alignlab; assert not {'torch', 'peft', 'transformers'} & set(sys.modules)") == ""


def test_importing_alignlab_leaves_the_import_system_as_it_was() -> None:
    assert _run("import sys; before = list(sys.meta_path); import alignlab; assert sys.meta_path == before") == ""
