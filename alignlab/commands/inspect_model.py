"""The provider `alignlab` of inspect-ai, found by its entry point: inspect eval TASK --model alignlab/RUN -M strength=1.5"""

from __future__ import annotations

from typing import Any

from inspect_ai.model import ChatMessage, GenerateConfig, ModelAPI, ModelOutput, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from alignlab.data.rows import conversation
from alignlab.errors import ConfigError
from alignlab.models.sampling import Sampling
from alignlab.records import Turn

NEW_TOKENS = 512
"""Of an answer where a task names no number."""


@modelapi(name="alignlab")
class RunAPI(ModelAPI):
    """A finished run: the model's name is its folder. `strength` or `control`: where it is asked. Answers come one by one."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        strength: float = 1.0,
        control: str | None = None,
        device: str = "auto",
        **_: Any,
    ) -> None:
        from alignlab.finished import load

        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self._strength, self._control = float(strength), control
        self._policy = load(model_name, device=device)

    def max_connections(self) -> int:
        """Answers are made one after the other."""
        return 1

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The answer to the messages, which end with the user's. Raises ConfigError where a task gives the model tools."""
        if tools:
            raise ConfigError("a run of alignlab calls no tools; choose a task without any.")
        turns = [Turn(message.role, message.text) for message in input]
        (text,) = self._policy.respond(
            [conversation(turns)],
            strength=self._strength,
            control=self._control,
            sampling=sampling_of(config),
            seed=config.seed or 0,
        )
        return ModelOutput.from_content(self.model_name, text)


def sampling_of(config: GenerateConfig) -> Sampling:
    """How inspect's settings ask for text; greedy where they name no temperature."""
    return Sampling(
        max_new_tokens=config.max_tokens or NEW_TOKENS,
        temperature=config.temperature or 0.0,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        stop=tuple(config.stop_seqs or ()),
    )
