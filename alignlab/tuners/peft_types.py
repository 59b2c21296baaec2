"""Our tuners as PEFT methods: peft's list of types is closed, so it is grown at run time, then registered in public.

Once a name is a member, every route of peft and transformers works on it: attach, save, load, merge, `load_adapter`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import PeftType

_MARK = "grown_by"
_OURS = "alignlab"


def grow(name: str) -> PeftType:
    """Give `PeftType` one more member, or return the one that was grown before.

    A plain string in peft's tables looks as if it worked and then fails in transformers' loader for adapter folders,
    hence a real member. This writes the tables of `enum.Enum`, which are not public: the tests try every route.

    Raises:
        ModelError: this peft ships a method of that name itself.
    """
    # peft is imported inside, so that this module is whole before an import of peft can call back into the rooms.
    from peft.utils import PeftType

    present = PeftType.__members__.get(name)
    if present is not None and getattr(present, _MARK, None) != _OURS:
        raise ModelError(f"this peft has a method {name} of its own that alignlab's would hide; try peft>=0.21,<0.23.")
    if present is not None:
        return present
    member = str.__new__(PeftType, name)
    vars(member).update(_name_=name, _value_=name, __objclass__=PeftType, _sort_order_=len(PeftType))
    vars(member)[_MARK] = _OURS
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # EnumType refuses to set a member's name on the class, so this goes past it.
    type.__setattr__(PeftType, name, member)
    return member


def register(name: str, config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Make a tuner known to peft under a lower-case name; a second call with the same tuner changes nothing.

    Raises:
        ModelError: peft, or another package, already has a method of that name.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import register_peft_method

    member = grow(name.upper())
    known = PEFT_TYPE_TO_TUNER_MAPPING.get(member)
    if known is None:
        register_peft_method(name=name, config_cls=config, model_cls=model)
    elif (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
        theirs = f"{known.__module__}.{known.__qualname__}"
        raise ModelError(f"peft already runs {theirs} under the name {name!r}; import only one of the two.")
