"""What the server takes, as pydantic types: OpenAI's fields that are answered here, and the run's own. A field that is not here
is refused. Importing this module needs pydantic (alignlab[serve])."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, FiniteFloat, Tag

from alignlab.models.sampling import Sampling
from alignlab.records import Turn

LARGEST = 2**31 - 1
"""Of a number of tokens; the server's own limits are lower."""
SEEDS = 2**63 - 1
"""The largest seed of torch's generators."""
STOPS = 4
"""OpenAI's number of stop strings."""

StopText = Annotated[str, Field(min_length=1, max_length=256)]
Tokens = Annotated[int, Field(ge=1, le=LARGEST)]
Strengths = Annotated[
    Annotated[FiniteFloat, Tag("number")] | Annotated[dict[str, FiniteFloat], Tag("numbers")],
    # which of them is wrong, in place of all that it is not
    Discriminator(lambda given: "numbers" if isinstance(given, dict) else "number"),
    Field(
        description="How much of what the run has learned: 0 is the backbone, 1 the trained model. A model of several adapters"
        " also takes an object with a number for each of them by its name."
    ),
]


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk without choices counts the tokens."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of request have. `strength`: how much of the run's tuner, 1 without it, or of each of
    several adapters by its name; `control`: a class of a run that
    has classes, or weights of classes that add up to 1. Without `seed` every answer is drawn anew; temperature 0 is greedy."""

    model_config = ConfigDict(extra="forbid")

    model: str
    strength: Strengths | None = None
    control: str | dict[str, FiniteFloat] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    max_tokens: Tokens | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=STOPS)] | None = None
    seed: Annotated[int, Field(ge=-SEEDS, le=SEEDS)] | None = None
    n: Literal[1] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def drawn_from(self) -> int:
        """The seed, or one that nobody knows."""
        return secrets.randbits(63) if self.seed is None else self.seed

    @property
    def new_tokens(self) -> int | None:
        """The most tokens that are wanted."""
        return self.max_tokens

    def sampling(self, new_tokens: int) -> Sampling:
        """How so many tokens are chosen. Raises ConfigError for what does not go together."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(new_tokens, self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty, stop=stop)


class CompletionRequest(Request):
    """A text that is continued as it stands."""

    prompt: str


class TextPart(BaseModel):
    """A part of a message; only text is read."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def turn(self) -> Turn:
        """The message as a turn; the texts of several parts follow one another."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn(self.role, text)


class ChatRequest(Request):
    """A conversation, which the run's template writes. `max_completion_tokens` is OpenAI's newer name of `max_tokens`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None

    @property
    def new_tokens(self) -> int | None:
        """The most tokens that are wanted."""
        return self.max_completion_tokens or self.max_tokens
