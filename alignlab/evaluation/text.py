"""A text file under a policy: perplexity, nats per token, and bits per byte, which do not depend on the tokenizer."""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignlab.errors import ConfigError, DataError
from alignlab.evaluation import Point
from alignlab.evaluation.config import EvaluationConfig
from alignlab.evaluation.harness import Request, likelihoods
from alignlab.evaluation.statistics import Measurement, Places, resampled
from alignlab.evaluation.suite import EvaluationContext

TOKENS_PER_PASS = 4096


class TextSuite:
    """Every token of a file is predicted once, behind BOS (or EOS, where there is none) and what the window holds before it."""

    def __init__(self, context: EvaluationContext) -> None:
        self._policy, self._begun, config = context.policy, context.begun, context.config.text
        codec = self._policy.backbone.codec
        text = read_text(context.config)
        bos = codec.tokenizer.bos_token_id
        ids = (codec.eos if bos is None else int(bos), *codec.prefix(text))
        room = min(config.window or self._policy.room, self._policy.room)
        if room < 2 or (config.stride or 1) >= room:
            raise ConfigError(
                f"a window of {room} tokens cannot predict {config.stride or 1} of them behind another; lower"
                " evaluation.text.stride, or raise evaluation.text.window."
            )
        self._windows = windows(ids, room, config.stride or room - 1)
        self._bytes = len(text.encode("utf-8"))

    def measure(self, point: Point) -> list[Measurement]:
        """All three with an interval over windows; that of bits per byte takes the text's bytes per token as they are."""
        found = likelihoods(self._policy, point, self._windows, TOKENS_PER_PASS, self._begun.of(f"text at {point}"))
        nats_N = -np.array([total for total, _ in found])
        tokens_N = np.array([len(continuation) for _, continuation in self._windows])
        bits = tokens_N.sum() / self._bytes / math.log(2)

        def per_token(places: Places) -> float:
            return float(nats_N[places].sum() / tokens_N[places].sum())

        count = len(self._windows)
        return [
            resampled("perplexity", count, lambda places: math.exp(per_token(places))),
            resampled("nats_per_token", count, per_token),
            resampled("bits_per_byte", count, lambda places: per_token(places) * bits),
        ]


def read_text(config: EvaluationConfig) -> str:
    """The first lines of suite text's file. Raises DataError for what is no text, or an empty one."""
    given = config.text
    text = "".join(file_text(str(given.path), "evaluation.text.path").splitlines(keepends=True)[: given.lines])
    if not text.strip():
        raise DataError(f"{given.path} holds no text; give evaluation.text.path another file.")
    return text


def file_text(name: str, key: str) -> str:
    """A file in UTF-8, one that ends in .gz unpacked. Raises DataError for what is neither, naming the config's key."""
    path = Path(name)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no text in UTF-8 ({error}); give {key} another file.") from error


def windows(ids: Sequence[int], room: int, stride: int) -> list[Request]:
    """Contexts and what is predicted behind them, `room` tokens together at most: all tokens but the first, `stride` at a time
    (the first window as many as it has room for)."""
    made: list[Request] = []
    begin = 1
    while begin < len(ids):
        end = min(begin + (stride if made else room - 1), len(ids))
        made.append((tuple(ids[max(0, end - room) : begin]), tuple(ids[begin:end])))
        begin = end
    return made
