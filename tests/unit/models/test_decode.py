"""How a token is drawn from scores and one uniform number, by hand."""

from __future__ import annotations

import pytest
import torch

from alignlab.models.decode import _drawn

PROBABILITIES = torch.tensor([[0.2, 0.5, 0.3]])


def chosen(uniform: float, top_p: float = 1.0) -> int:
    return int(_drawn(PROBABILITIES.log(), top_p, torch.tensor([uniform])))


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 0), (0.9999999, 0)],
)
def test_a_draw_falls_into_the_shares_of_the_tokens_likeliest_first(uniform: float, token: int) -> None:
    assert chosen(uniform) == token


@pytest.mark.parametrize(("uniform", "token"), [(0.6, 1), (0.63, 2), (0.9999999, 2)])
def test_top_p_keeps_the_smallest_set_that_reaches_it_and_shares_the_draw_among_it(uniform: float, token: int) -> None:
    # 0.5 is not yet 0.7, 0.8 is: tokens 1 and 2 with shares 0.625 and 0.375
    assert chosen(uniform, top_p=0.7) == token


def test_each_row_has_its_own_draw() -> None:
    tokens_B = _drawn(PROBABILITIES.log().expand(3, 3), 1.0, torch.tensor([0.1, 0.6, 0.9]))

    assert tokens_B.tolist() == [1, 2, 0]
