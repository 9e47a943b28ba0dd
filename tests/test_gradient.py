"""The backward pass adds gradients up, also of parameters that share the memory of theirs."""

from __future__ import annotations

import pytest
import torch

from zofo.evaluators import Counts
from zofo.evaluators.backward import Gradient, _take


class Sum(torch.nn.Module):
    """x . (a + b) + sum(c): autograd gives a and b one tensor, and c an expanded number."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))

    def forward(self, x):
        return ((self.a + self.b) * x).sum(dim=1) + self.c.sum()


@pytest.mark.parametrize("times", [1, 3])
def test_gradients_that_share_their_memory_are_added_once_each(times):
    model = Sum()
    x = torch.tensor([[1.0, 2.0, 4.0]])
    gradient = Gradient(model, Counts())
    for _ in range(times):
        gradient.accumulate([*model.parameters()], lambda module, batch: module(batch), x)
    for parameter, expected in zip(model.parameters(), (x[0], x[0], torch.ones(3)), strict=True):
        assert torch.equal(parameter.grad, times * expected)
        parameter.grad.mul_(2.0)  # as clipping does
        assert torch.equal(parameter.grad, 2 * times * expected)


def test_gradients_of_pieces_are_let_go_while_they_are_added():
    """At most two of all parameters and one tensor more."""
    alive, most = set(), []

    class Counted:
        def __init__(self):
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

        def __add__(self, other):
            made = Counted()
            most.append(len(alive))
            return made

    total, gradients = [Counted() for _ in range(9)], [Counted() for _ in range(9)]
    _take(total, gradients)
    assert (max(most), len(alive)) == (19, 9)
