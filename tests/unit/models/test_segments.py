"""Attention in segments: when it is used, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from alignlab.errors import ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.segments import Segment, Segments, attend


def test_a_backbone_outside_the_attention_interface_gets_separate_rows(llama: Backbone) -> None:
    shape = GPTNeoConfig(
        vocab_size=32,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global"], 2]],
        bos_token_id=1,
        eos_token_id=2,
    )
    other = replace(llama, model=GPTNeoForCausalLM(shape))

    assert llama.takes_segments
    assert not other.takes_segments


def test_attention_with_a_softcap_is_refused() -> None:
    tokens = range(3)
    segments = Segments.build([Segment(tokens, (tokens,))], torch.float32, torch.device("cpu"))
    states = torch.zeros(1, 2, 3, 4)

    with pytest.raises(ModelError, match=r"attention uses softcap; set trainer\.shared_prefix=false"):
        attend(torch.nn.Identity(), states, states, states, None, segments=segments, softcap=30.0)


def test_one_segment_is_plain_causal_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 5, 4, generator=generator) for heads in (4, 2, 2))
    tokens = range(5)
    segments = Segments.build([Segment(tokens, (tokens,))], torch.float32, torch.device("cpu"))

    answer, _ = attend(torch.nn.Identity(), query, key, value, None, segments=segments)

    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(answer, expected.transpose(1, 2))
