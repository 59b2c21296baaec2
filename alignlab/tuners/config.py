"""The configs of the `tuner` and `control` groups: what is learned, at which rates, and the form of classes. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from alignlab.data.config import ClassesConfig
from alignlab.errors import ConfigError
from alignlab.files import content_keys
from alignlab.models.config import Shape
from alignlab.registry import names, number, one_of, path, random_seed, rank, text

EDITS = ("both", "scale", "shift")
STARTS = ("identity", "random")
MERGES = ("logits", "embeddings")
FORMS = ("text", "token", "soft_prompt", "lora")
STARTS_OF_PROMPTS = ("text", "vocabulary", "random")
RETRIEVALS = ("max", "average", "random", "soft", "router", "sampled", "whole", "none")
MOST_BLOCKS = 3
"""Blocks that CLM adds at most; its paper's table 7 ends there."""
MOST_VECTORS = 10_000
"""Vectors of a soft prompt at most."""
EVERY_SECOND_FROM = 16
"""Blocks of the smallest backbone in which layers chosen by depth leave out every second one."""


@dataclass
class LayersConfig:
    """Some blocks of a backbone, counted from 1; layer l is the output of block l. `numbers`: which; null takes those between
    two shares of the `depth`: every second one, or every one in a backbone of fewer than 16."""

    numbers: Annotated[list[int] | None, number(minimum=1)]
    depth: Annotated[list[float], number(minimum=0, below=1)]

    def check(self, where: str) -> None:
        """Raises ConfigError for an empty list and for shares that are not in order."""
        if self.numbers is not None and (not self.numbers or len(set(self.numbers)) < len(self.numbers)):
            raise ConfigError(f"{where}.numbers={self.numbers} must name at least one layer, each once; or null, to use depth.")
        if len(self.depth) != 2 or not 0 <= self.depth[0] <= self.depth[1] < 1:
            raise ConfigError(f"{where}.depth={self.depth} must be two shares of the depth, [from, to], from 0 to below 1.")

    def of(self, shape: Shape) -> list[int]:
        """The numbers, in rising order. Raises ConfigError for one outside the backbone, and for its last layer: what
        transformers lists as such stands behind the final norm."""
        last = shape.blocks - 1
        if last < 1:
            raise ConfigError("layers are chosen below the last one, and this backbone has a single block; take a deeper one.")
        if self.numbers is None:
            first, highest = (min(max(round(share * shape.blocks), 1), last) for share in self.depth)
            return list(range(first, highest + 1, 2 if shape.blocks >= EVERY_SECOND_FROM else 1))
        outside = [number for number in self.numbers if not 1 <= number <= last]
        if outside:
            raise ConfigError(
                f"layer {outside[0]} of layers {self.numbers} does not fit {shape.blocks} blocks; choose 1 to {last}."
            )
        return sorted(self.numbers)


@dataclass
class TunerConfig:
    """Rates are AdamW learning rates: `likelihood_rate` for objectives on log-probabilities, `preference_rate` for pairs.

    They are in the tuner's config because they depend on the trained parameters: RED and LoRA differ by a factor of ten under
    one loss.
    """

    name: str
    likelihood_rate: Annotated[float, number(above=0, below=10)]
    preference_rate: Annotated[float, number(above=0, below=10)]
    aside: ClassVar[bool] = False
    """Whether a stage that trains the backbone, with this tuner detached, ends with the bits that it ends with under any other
    tuner of which this is true. One that puts vectors into texts wraps the embedding, and the sums come in another order."""

    @property
    def leaves_backbone(self) -> bool:
        """Whether the tuner of this config is aside."""
        return self.aside


@dataclass
class FullConfig(TunerConfig):
    """Every weight of the backbone."""

    aside = True


@dataclass
class BitfitConfig(TunerConfig):
    """Every bias of the backbone."""

    aside = True


@dataclass
class LoraConfig(TunerConfig):
    """Low-rank updates, scaled by `alpha` / `rank`. `targets`: names of linear maps, or one pattern; empty means all of them
    but the head, null peft's own choice for the architecture, usually queries and values."""

    aside = True
    rank: Annotated[int, rank()]
    alpha: Annotated[float, number(above=0)]
    dropout: Annotated[float, number(minimum=0, below=1)]
    targets: Annotated[Any, names()]


@dataclass
class LowerLoraConfig(LoraConfig):
    """LoRA only in the blocks that the layers `below` depend on, and in `beyond` more."""

    below: LayersConfig
    beyond: Annotated[int, number(minimum=0)]


@dataclass
class Ia3Config(TunerConfig):
    """Learned factors on keys, values and the feed-forward's inner activation. `targets`: names of linear maps, or one pattern;
    null = peft's own places. `feedforward`: those of them whose input is scaled, and not their output; null = peft's."""

    aside = True
    targets: Annotated[Any, names(empty="would learn nothing; give names, or null for peft's own places.")]
    feedforward: Annotated[Any, names(needs=("targets", "give both, or neither"))]


@dataclass
class RedTunerConfig(TunerConfig):
    """Representation editing. `edit`: both | scale | shift. `place`: ffn (RED) | plus (RED+, five outputs per block).
    `targets`: names of linear maps to edit instead, or one pattern; null = those of `place` in this kind of model."""

    aside = True
    edit: Annotated[str, one_of(*EDITS)]
    place: Annotated[str, one_of("ffn", "plus")]
    targets: Annotated[Any, names(empty="would edit nothing; give names, or null for the place.", alone=("place", "plus"))]


@dataclass
class PromptTunerConfig(TunerConfig):
    """Learned vectors in front of every text. `length`: how many. `init`: vocabulary (embeddings of drawn tokens) | random."""

    length: Annotated[int, number(minimum=1, maximum=MOST_VECTORS)]
    init: Annotated[str, one_of("vocabulary", "random")]


@dataclass
class PrefixTunerConfig(TunerConfig):
    """Learned keys and values beside those of every text, in each block. `length`: how many of each. `init`: vocabulary (what
    drawn tokens have there) | random."""

    aside = True
    length: Annotated[int, number(minimum=1, maximum=MOST_VECTORS)]
    init: Annotated[str, one_of("vocabulary", "random")]


@dataclass
class AdapterTunerConfig(TunerConfig):
    """Bottlenecks of this inner width behind sub-layers. `place`: both (attention and feed-forward) | ffn. `norms`: the layer
    norms of the same blocks are trained too. `drop`: the lowest blocks of each stack, which have none. `targets`: names of
    linear maps behind which they stand instead, or one pattern; null = those of `place` in this kind of model."""

    aside = True
    bottleneck: Annotated[int, rank()]
    place: Annotated[str, one_of("both", "ffn")]
    norms: bool
    drop: Annotated[int, number(minimum=0)]
    targets: Annotated[Any, names(empty="would add nothing; give names, or null for the place.")]


@dataclass
class LoreftTunerConfig(TunerConfig):
    """A low-rank edit of the output of whole blocks. `rank`: of each; `layers`: the numbers of the blocks, from 1 on, null =
    all."""

    aside = True
    rank: Annotated[int, rank()]
    layers: Annotated[list[int] | None, number(minimum=1)]

    def check(self, where: str) -> None:
        """Raises ConfigError for an empty list and for a number that stands twice."""
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ConfigError(f"{where}.layers={self.layers} must name at least one layer, each once; or null, for all.")


@dataclass
class BlocksConfig(TunerConfig):
    """Some of the backbone's own blocks, nothing added: the `count` nearest to `side`, bottom (embeddings) or top (head)."""

    aside = True
    side: Annotated[str, one_of("bottom", "top")]
    count: Annotated[int, number(minimum=1)]


@dataclass
class DeraConfig(TunerConfig):
    """Two models mixed at the logits: the backbone, and an aligned one. `aligned`: folder of a checkpoint of the same
    architecture, or null for the backbone's own weights, which a method then trains."""

    aligned: Annotated[str | None, path()]

    @property
    def leaves_backbone(self) -> bool:
        """Unless an aligned model takes its place."""
        return self.aligned is None

    def check(self, where: str) -> None:
        """Raises ConfigError for a folder without a safetensors checkpoint."""
        if self.aligned is None:
            return
        folder = Path(self.aligned)
        if not folder.is_dir():
            raise ConfigError(f"{where}.aligned={self.aligned} does not exist; give a folder saved by save_pretrained.")
        if (folder / "adapter_config.json").is_file():
            raise ConfigError(
                f"{where}.aligned={self.aligned} is an adapter; `python -m alignlab export RUN` makes a whole model."
            )
        if not list(folder.glob("*.safetensors")):
            raise ConfigError(f"{where}.aligned={self.aligned} holds no *.safetensors; give a folder saved by save_pretrained.")

    def cache_key(self) -> list[str]:
        """The content of the aligned weights."""
        return content_keys(sorted(Path(self.aligned).glob("*.safetensors"))) if self.aligned else []

    def places(self) -> tuple[str, ...]:
        """Where the aligned weights lie; null says that there are none."""
        return ("aligned",) if self.aligned else ()


@dataclass
class ClmTunerConfig(TunerConfig):
    """Blocks in front of the first one. `start`: identity (zeroed copies of the first block) | random. `merge`: logits (the
    paper's) | embeddings (one pass that mixes the blocks' output with their input; for comparison, not the paper's). `targets`:
    the name of the first block, or a pattern; `writes`: what in it writes into the residual stream; null = from the table of
    layouts, and the first block as it is found."""

    aside = True
    blocks: Annotated[int, number(minimum=1, maximum=MOST_BLOCKS)]
    start: Annotated[str, one_of(*STARTS)]
    merge: Annotated[str, one_of(*MERGES)]
    targets: Annotated[Any, names(empty="names no block; give the first one, or null.")]
    writes: Annotated[list[str] | None, names(empty="silences nothing, so no block would start as the identity; give names.")]

    def check(self, where: str) -> None:
        """Raises ConfigError for more than one first block, and for one without its writers."""
        if isinstance(self.targets, list) and len(self.targets) > 1:
            raise ConfigError(f"{where}.targets={self.targets} must name one block, the first.")
        if self.targets is not None and self.writes is None:
            raise ConfigError(
                f"{where}.targets names a block, and {where}.writes what in it writes into the stream; give both."
            )


@dataclass
class ControlTunerConfig(TunerConfig):
    """What the chosen control puts into the model. `joint_rate`: the control's rate while the model is trained with it."""

    joint_rate: Annotated[float, number(above=0, below=10)]


def check_bank(where: str, retrieval: str, tokens: int, retrieved: int) -> None:
    """Raises ConfigError for more chosen vectors than a bank has, and for one that does not consist of whole prompts."""
    if retrieval != "none" and retrieved > tokens:
        raise ConfigError(
            f"{where}retrieved={retrieved} vectors cannot be chosen from a bank of {where}tokens={tokens}; lower the one or"
            " raise the other."
        )
    if retrieval == "whole" and tokens % retrieved:
        raise ConfigError(
            f"{where}tokens={tokens} are not whole prompts of {where}retrieved={retrieved} vectors; give a multiple of it."
        )


@dataclass
class TokenBankTunerConfig(TunerConfig):
    """A bank of `tokens` vectors, of which `retrieved` are chosen for each text, and a task prompt of `length`. `retrieval`:
    max | average | random | soft | router | sampled | whole (the bank is prompts of `retrieved` vectors, of which one is taken)
    | none (no bank). `masked`: padding is hidden from attention and from the query; without that, a text is padded to
    `padded_to` tokens, null = as its batch is. `draw_seed`: of random and sampled. `bank_ids`, `prompt_ids`: [first, behind]
    of the ids whose embeddings they start as. `placeholders`: two ids that no text holds; null = the last of the vocabulary.
    `bank_from`, `prompt_from`: folders of saved adapters that they start from instead."""

    tokens: Annotated[int, number(minimum=1, maximum=MOST_VECTORS)]
    retrieved: Annotated[int, number(minimum=1, maximum=MOST_VECTORS)]
    length: Annotated[int, number(minimum=1, maximum=MOST_VECTORS)]
    retrieval: Annotated[str, one_of(*RETRIEVALS)]
    masked: bool
    padded_to: Annotated[int | None, number(minimum=1)]
    draw_seed: Annotated[int, random_seed()]
    bank_ids: Annotated[list[int], number(minimum=0)]
    prompt_ids: Annotated[list[int], number(minimum=0)]
    placeholders: Annotated[list[int] | None, number(minimum=0, unique=True)]
    bank_from: Annotated[str | None, path()]
    prompt_from: Annotated[str | None, path()]

    def check(self, where: str) -> None:
        """Raises ConfigError for sizes that do not fit each other, ranges and placeholders of another number than two, and
        folders without an adapter."""
        check_bank(f"{where}.", self.retrieval, self.tokens, self.retrieved)
        if self.masked and self.padded_to is not None:
            raise ConfigError(f"{where}.padded_to={self.padded_to} has no meaning where padding is masked; set it to null.")
        for key in ("bank_ids", "prompt_ids", "placeholders"):
            given = getattr(self, key)
            if given is not None and len(given) != 2:
                raise ConfigError(f"{where}.{key}={given} must be two ids.")
        for key in self.places():
            if not (Path(str(getattr(self, key))) / "adapter_model.safetensors").is_file():
                raise ConfigError(
                    f"{where}.{key}={getattr(self, key)} holds no adapter_model.safetensors; give the folder of a saved"
                    " adapter, such as RUN/stages/bank/result."
                )

    def cache_key(self) -> list[str]:
        """The content of the adapters that it starts from."""
        return content_keys([Path(str(getattr(self, key))) / "adapter_model.safetensors" for key in self.places()])

    def places(self) -> tuple[str, ...]:
        """Where the adapters lie that it starts from."""
        return tuple(key for key in ("bank_from", "prompt_from") if getattr(self, key) is not None)


@dataclass
class StrengthConfig:
    """`strengths`: those that are evaluated; 0 is the backbone, 1 the trained model. `figure`: draw dial.png."""

    name: str
    strengths: Annotated[list[float], number(unique=True, least=1)]
    figure: bool


@dataclass
class FormConfig:
    """A control that chooses between classes. `phrase`: a text with {class}, per class; `phrases`: other texts for some
    classes. `place` of what stands in the text: after_bos | before_bos. `rate`: AdamW learning rate of the control alone;
    `joint_rate`: beside the model. Evaluated are all classes, none, and for two classes mixtures at `strengths`."""

    name: str
    classes: ClassesConfig
    phrase: Annotated[str, text(holds="{class}")]
    phrases: dict[str, str]
    place: Annotated[str, one_of("after_bos", "before_bos")]
    rate: Annotated[float, number(above=0, below=10)]
    joint_rate: Annotated[float, number(above=0, below=10)]
    strengths: Annotated[list[float], number(unique=True)]
    figure: bool

    @property
    def form(self) -> str:
        """The form in which the model gets a class."""
        return self.name

    def phrase_of(self, name: str) -> str:
        """The text that stands for a class."""
        return self.phrases.get(name, self.phrase.replace("{class}", name))


@dataclass
class PrefixFormConfig(FormConfig):
    """Texts that ask for good and for bad answers, those of the data: `phrases` has one for every class."""

    @property
    def form(self) -> str:
        """A text."""
        return "text"


@dataclass
class EmbeddedFormConfig(FormConfig):
    """Vectors in the text. `length`: how many per class. `init`: text (embeddings of the phrase, repeated or cut) | vocabulary
    (of drawn tokens) | random. `placeholders`: an unused id per class, null = found."""

    length: Annotated[int, number(minimum=1, maximum=MOST_VECTORS)]
    init: Annotated[str, one_of(*STARTS_OF_PROMPTS)]
    placeholders: Annotated[list[int] | None, number(minimum=0, unique=True, note="each class needs its own")]


@dataclass
class LoraFormConfig(FormConfig):
    """A LoRA per class, scaled by `alpha` / `rank`. `targets`: names of linear maps; empty means queries and values."""

    rank: Annotated[int, rank()]
    alpha: Annotated[float, number(above=0)]
    dropout: Annotated[float, number(minimum=0, below=1)]
    targets: list[str]
