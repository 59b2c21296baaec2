"""What a control adapter needs to be rebuilt: its form, its classes, and where each stands in a text."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig

from alignlab.errors import ConfigError
from alignlab.models.strength import Controls, Prefix
from alignlab.registry import unknown
from alignlab.tuners.config import FORMS, STARTS_OF_PROMPTS
from alignlab.tuners.peft_types import grow


@dataclass
class ControlConfig(PeftConfig):
    """The configuration of a control adapter.

    Raises:
        ConfigError: a form or a start that does not exist, or lists that do not have an entry per class.
    """

    form: str = field(default="soft_prompt", metadata={"help": "text, token, soft_prompt or lora."})
    classes: list[str] = field(
        default_factory=lambda: ["good", "bad"], metadata={"help": "Best first, where there is an order."}
    )
    behind: int = field(default=1, metadata={"help": "Tokens of a text in front of the control: 1 where it begins with BOS."})
    length: int = field(default=20, metadata={"help": "Vectors per class of a soft prompt."})
    placeholders: list[int] = field(
        default_factory=list, metadata={"help": "An id per class that no text holds, for a token or a soft prompt."}
    )
    init: str = field(default="random", metadata={"help": "How vectors start: text, vocabulary or random."})
    phrases: list[list[int]] = field(
        default_factory=list, metadata={"help": "Ids of a phrase per class: a text control, or where vectors start."}
    )
    rank: int = field(default=8, metadata={"help": "Rank of each class's LoRA."})
    alpha: float = field(default=16.0, metadata={"help": "LoRA's scale is alpha / rank."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the LoRA."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Linear maps with a LoRA; None: queries and values, from peft's table."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules beside the control that are trained and saved."}
    )
    edges: list[float] = field(default_factory=list, metadata={"help": "Scores that with_halves the classes, falling."})
    template: str | None = field(default=None, metadata={"help": "Hash of the template that prompts were written with."})
    base_hash: str | None = field(default=None, metadata={"help": "Hash of the weights that the control was tuned with."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = grow("CONTROL")
        if self.form not in FORMS:
            raise ConfigError(unknown("form of a control", self.form, FORMS))
        if self.init not in STARTS_OF_PROMPTS:
            raise ConfigError(unknown("start of a control", self.init, STARTS_OF_PROMPTS))
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise ConfigError(f"a control needs at least two classes, each once; got {self.classes}.")
        for name, wanted in (("placeholders", self.embeds), ("phrases", self.form == "text" or self.starts_from_phrases)):
            given = getattr(self, name)
            if wanted and len(given) != len(self.classes):
                raise ConfigError(f"a {self.form} control needs {name}, one per class: {len(given)} for {len(self.classes)}.")

    @property
    def embeds(self) -> bool:
        """Whether vectors are put in place of placeholder ids."""
        return self.form in ("token", "soft_prompt")

    @property
    def starts_from_phrases(self) -> bool:
        """Whether vectors start as the embeddings of phrases."""
        return self.embeds and self.init == "text"

    @property
    def controls(self) -> Controls:
        """The classes as a model is asked for them."""
        if self.form == "lora":
            prefixes: list[tuple[int, ...]] = [()] * len(self.classes)
        elif self.form == "text":
            prefixes = [tuple(ids) for ids in self.phrases]
        else:
            prefixes = [(placeholder,) * self.length for placeholder in self.placeholders]
        return Controls(
            names=tuple(self.classes),
            prefixes=tuple(Prefix(ids, self.behind) for ids in prefixes),
            reserved=tuple(self.placeholders) if self.embeds else (),
            template=self.template,
        )
