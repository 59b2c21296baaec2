"""What all tuners that peft attaches have in common: attach, switch off, save and load."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.errors import ControlError, ModelError
from alignlab.models.config import EMBEDDED
from alignlab.models.kinds import task_type_of
from alignlab.models.strength import Controls, Strength, WeightedPass
from alignlab.tuners.modules_to_save import ModulesToSave
from alignlab.tuners.tuner import one_pass, setting

if TYPE_CHECKING:
    from typing_extensions import Self


def stores_transposed(model: nn.Module) -> bool:
    """Whether the model's linear maps are GPT-2's Conv1D, which store their weight in x out; peft wants to be told."""
    return any(isinstance(module, Conv1D) for module in model.modules())


class PeftTuner:
    """A peft adapter; each kind adds its `edited`. What peft trains beside the edit follows the tuner, see `ModulesToSave`.

    `one_strength`: why all rows of a pass share a strength, as the end of a sentence; empty where they need not.
    """

    per_row = True
    controls: Controls | None = None
    adds_parameters = True
    starts_as_base = True

    def __init__(self, model: PreTrainedModel, config: PeftConfig) -> None:
        config.task_type = config.task_type or task_type_of(model)
        config.base_model_name_or_path = None  # a control may name the folder of another machine, of which peft would warn
        try:
            with warnings.catch_warnings():
                # peft asks a property that transformers 5 has renamed
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
                # of fused experts peft names maps that are not there
                warnings.filterwarnings("ignore", message=".*(rank|alpha)_pattern keys did not match", category=RuntimeWarning)
                self.module: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:
            raise ModelError(f"peft cannot attach {config.peft_type}: {error}") from error
        config.base_model_name_or_path = public_name(model)
        self._find()

    @classmethod
    def around(cls, model: PeftModel) -> Self:
        """The tuner of a model that peft has attached already."""
        tuner = cls.__new__(cls)
        tuner.module = model
        tuner._find()
        return tuner

    def _find(self) -> None:
        self.layers: list[Any] = [
            module
            for module in self.module.modules()
            if isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer)
        ]
        self._learned = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self._base: Path | None = None
        self.beside = ModulesToSave(self.module)
        self.one_strength = self._shared_by_rows()
        self.per_row = type(self).per_row and not self.one_strength

    def parameters(self) -> list[nn.Parameter]:
        """What is learned."""
        return list(self._learned)

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """None; a tuner of several parts says so."""
        return {}

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """One pass at this strength."""
        return one_pass(strength)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """The edit scaled, and what was trained beside it.

        Raises ControlError for rows of different strengths where they share what is turned.
        """
        if isinstance(setting, float) and setting == 1.0:
            return nullcontext()
        if not self.one_strength:
            return self.edited(setting)
        return self._together(_one(setting, self.one_strength))

    @contextmanager
    def _together(self, strength: float) -> Iterator[None]:
        with ExitStack() as stack:
            if strength != 1.0:
                stack.enter_context(self.edited(strength))
                stack.enter_context(self.beside.at(strength))
            yield

    def edited(self, setting: Strength) -> AbstractContextManager[None]:
        """The edit scaled; never asked for at 1.0, where nothing is touched."""
        raise TypeError(f"{type(self).__name__} does not say what a strength means: {setting}")

    def _shared_by_rows(self) -> str:
        if self.beside.names:
            return f"{', '.join(self.beside.names)} was trained beside the edit and is shared by all rows"
        find = getattr(self.module.get_base_model(), "get_output_embeddings", None)
        head = find() if find is not None else None
        if head is not None and any(layer is head for layer in self.layers):
            return "the adapter sits on the head, which sees single tokens and no rows"
        return ""

    def off(self) -> AbstractContextManager[None]:
        """Without the adapter. Layers are switched one by one, since peft's own context also turns gradients off and on."""
        off: AbstractContextManager[None] = setting("_disable_adapters", True, self.layers)
        return _both(off, self.beside.off()) if self.beside.any else off

    def set_base_model(self, folder: Path) -> None:
        """Written into adapter_config.json, from where the adapter is saved: both may move together."""
        self._base = folder.resolve()

    def detached(self) -> AbstractContextManager[None]:
        """Without the adapter; one whose start depends on the backbone says so."""
        return self.off()

    def save(self, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors, loadable with PeftModel.from_pretrained.

        Neither they nor the card beside them name a folder of this machine.
        """
        model = self.module.get_base_model()
        name = Path(os.path.relpath(self._base, folder.resolve())).as_posix() if self._base else public_name(model)
        configs = list(self.module.peft_config.values())
        with (
            setting("base_model_name_or_path", name, configs),
            # peft's card asks the model
            setting("name_or_path", name or "", [model]),
            setting("_name_or_path", name or "", [model.config]),
        ):
            # "auto" would ask the hub for the base's config and may write whole embeddings beside the adapter (P5).
            self.module.save_pretrained(str(folder), save_embedding_layers=False)

    def load(self, folder: Path) -> None:
        """Reads the adapter's tensors back."""
        tensors = load_peft_weights(str(folder), device="cpu")
        expected = get_peft_model_state_dict(self.module, save_embedding_layers=False)
        differing = sorted(tensors.keys() ^ expected.keys())
        if differing:
            raise ModelError(f"{folder} holds other tensors than this adapter has, {differing[0]} for one; it is another's.")
        set_peft_model_state_dict(self.module, tensors)


def public_name(model: nn.Module) -> str | None:
    """What others may know a backbone by: its name on the hub, alignlab/NAME of one that is shipped, else its folder's name."""
    origin = str(getattr(model, "name_or_path", "") or "")
    folder = Path(origin)
    if not origin or not (folder.is_absolute() or folder.is_dir()):
        return origin or None
    return f"alignlab/{folder.name}" if folder.parent == EMBEDDED else folder.name


def _one(given: Strength, why: str) -> float:
    """The strength that all rows have. Raises ControlError where they differ."""
    if not isinstance(given, Tensor):
        return given
    if not bool((given == given.reshape(-1)[0]).all()):
        raise ControlError(f"this adapter takes one strength per batch, not one per row: {why}.")
    return float(given.reshape(-1)[0])


@contextmanager
def _both(one: AbstractContextManager[None], other: AbstractContextManager[None]) -> Iterator[None]:
    with one, other:
        yield
