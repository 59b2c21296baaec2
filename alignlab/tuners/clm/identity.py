"""Whether a block that writes nothing returns its input: seen on the model itself, since no list of names can know it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alignlab.errors import ModelError
from alignlab.tuners.clm.blocks import written

ROWS, TOKENS = 2, 4


class _Reached(Exception):  # noqa: N818  # no error: it ends a pass early
    """The block has run; what follows is not needed."""


@torch.no_grad()
def refuse_other_than_identity(model: nn.Module, name: str, writes: list[str]) -> None:
    """Raises ModelError where block `name`, with all that it `writes` at zero, does not return its input bit for bit.

    A few ids run up to the block, whose weights are put back; a model without weights (meta device) is not looked at.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    block = model.get_submodule(name)
    block = getattr(block, "base_layer", block)  # another adapter may stand in front
    silent = written(block, writes)
    before = [parameter.data for parameter in silent]
    training = {module: module.training for module in model.modules()}
    kept: list[bool] = []

    def compare(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor | tuple[Tensor, ...]) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        kept.append(torch.equal(output if isinstance(output, Tensor) else output[0], given))
        raise _Reached

    hook = block.register_forward_hook(compare, with_kwargs=True)
    try:
        model.eval()
        for parameter in silent:
            parameter.data = torch.zeros_like(parameter.data)
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        ids_RT = torch.arange(ROWS * TOKENS, device=embedding.weight.device).reshape(ROWS, TOKENS) % len(embedding.weight)
        model(input_ids=ids_RT, use_cache=False)
    except _Reached:
        pass
    finally:
        hook.remove()
        for parameter, data in zip(silent, before, strict=True):
            parameter.data = data
        for module, was in training.items():
            module.training = was
    if kept != [True]:
        raise ModelError(
            f"{name} with {', '.join(writes)} at zero does not return its input, so no added block starts as the identity: its"
            " residual stream is normalised or scaled, or it writes through other modules, which `writes` must name too."
        )
