"""Attention in segments: what it computes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from alignlab.errors import ModelError
from alignlab.models.packing import Segment, Segments, attend, attending, visible

CONFIG = LlamaConfig()


def segments(*parts: Segment) -> Segments:
    return Segments.build(parts, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_attention_that_is_more_than_a_softmax_is_refused(name: str) -> None:
    states = torch.zeros(1, 2, 3, 4)

    with pytest.raises(ModelError, match=f"attention uses {name}, which segments do not have"):
        attend(torch.nn.Identity(), states, states, states, None, **{name: 30.0})


def test_a_mask_of_the_models_own_is_refused() -> None:
    states = torch.zeros(1, 2, 3, 4)

    with pytest.raises(ModelError, match="attention uses a mask of its own"):
        attend(torch.nn.Identity(), states, states, states, torch.zeros(1, 1, 3, 3))  # type: ignore[arg-type]


def test_one_segment_is_plain_causal_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 5, 4, generator=generator) for heads in (4, 2, 2))
    tokens = range(5)

    with attending(CONFIG, segments(Segment(tokens, (tokens,)))):
        seen = visible(mask_function=causal_mask_function)
        answer, _ = attend(torch.nn.Identity(), query, key, value, seen)

    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert seen is None
    torch.testing.assert_close(answer, expected.transpose(1, 2))


def test_a_window_counts_places_in_the_text_and_not_in_the_row() -> None:
    # A prompt of 2 tokens, and two tails of 3: the second tail stands 3 places further in the row than in its text.
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 8, 4, generator=generator) for _ in range(3))
    prompt, first, second = range(2), range(2, 5), range(5, 8)
    laid = segments(Segment(prompt, (prompt,)), Segment(first, (prompt, first)), Segment(second, (prompt, second)))

    with attending(CONFIG, laid):
        seen = visible(mask_function=sliding_window_causal_mask_function(3))
        answer, _ = attend(torch.nn.Identity(), query, key, value, seen)

    text = [0, 1, 5, 6, 7]
    places = torch.arange(5)
    inside = (places[:, None] >= places) & (places[:, None] - places < 3)
    alone = F.scaled_dot_product_attention(query[:, :, text], key[:, :, text], value[:, :, text], attn_mask=inside)
    torch.testing.assert_close(answer[:, text], alone.transpose(1, 2))


def test_attention_is_what_it_was_when_the_segments_are_left() -> None:
    config = LlamaConfig(attn_implementation="eager")
    tokens = range(3)

    with pytest.raises(ZeroDivisionError), attending(config, segments(Segment(tokens, (tokens,)))):
        _ = 1 / 0

    assert config._attn_implementation == "eager"
