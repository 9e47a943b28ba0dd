"""The memory of a run: what its process holds at its peak, term by term.

A process always holds itself with its libraries, the weights, the adapter, and the state of the optimizer. On top of
that comes the largest of these moments:

- a forward and backward: what each layer keeps for the gradient, logits, gradients, and temporaries of one operation;
- a forward without a gradient, of all points of a zeroth-order step: logits, and temporaries of one operation;
- the check before the first step: copies of one tensor of each kind, moved by hand;
- the update of the weights by an optimizer;
- an evaluation.

In addition, the C library keeps a share of freed memory, in gaps between long-lived tensors.

The tensors of each moment are not computed by formulas: the passes are run on the meta device and every allocation is
counted (`zofo.estimate.ledger`), so that nothing here depends on the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zofo.estimate.ledger import Trace
from zofo.estimate.machine import Machine

_LOST = "freed memory that the C library keeps"
_READ = "the largest tensor; free memory holds more of the files"
_CHECKED = 1 << 26  # largest tensor, in entries, that the check moves


@dataclass(frozen=True)
class Term:
    """A part of the memory at the peak, in bytes.

    Args:
        about: its origin, in a few words.
    """

    name: str
    size: int
    about: str


@dataclass(frozen=True)
class Held:
    """What a run always holds, in bytes.

    Args:
        process: Python and its libraries; 0 on CUDA, where they are not in torch's allocator.
        weights: the model's weights, as packed; if they are offloaded, only the largest one, which a forward reads at
            once, since the system can drop the pages of all others.
        copies: copies of theta, and float32 buffers of a rule.
        offloaded: whether the weights are offloaded.
    """

    process: int
    weights: int
    adapter: int = 0
    moments: int = 0
    copies: int = 0
    offloaded: bool = False


@dataclass(frozen=True)
class Moment:
    """A moment of a run that may be its peak.

    Args:
        terms: what it takes in addition to what is always held, in bytes.
    """

    name: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """The total in bytes."""
        return sum(term.size for term in self.terms)


def of_pass(name: str, found: Trace, gradient: bool, shares: tuple[float, float]) -> Moment:
    """The peak of a forward, or of a forward and backward.

    Args:
        shares: shares that the C library keeps, of a forward and of one with a gradient.
    """
    kept = min(found.kept_bytes, found.peak_bytes - found.logits_bytes)
    rest = found.peak_bytes - found.logits_bytes - kept
    lost = found.made_bytes * shares[1] if gradient else found.peak_bytes * shares[0]
    terms = [Term("activations kept", kept, "what layers keep for the backward pass")] if gradient else []
    terms += [
        Term("logits", found.logits_bytes, "scores of the whole vocabulary, and their logarithms"),
        Term("working tensors", rest, "gradients, and what operations make" if gradient else "what operations make"),
        Term("not given back", round(lost), _LOST),
    ]
    return Moment(name, tuple(terms))


def of_check(moved: nn.Module, share: float) -> Moment:
    """The check of low-rank terms before the first step, in float32: one tensor of each kind and its copy.

    Args:
        share: share of these that the C library keeps.
    """
    kinds: dict[str, int] = {}
    for name, parameter in moved.named_parameters():
        if parameter.numel() <= _CHECKED:
            kinds.setdefault(re.sub(r"\d+", "*", name), parameter.numel() * parameter.element_size())
    size = sum(kinds.values())
    copies = Term("copies for the check", size, "of one tensor of each kind, before the first step")
    return Moment("the check before the first step", (copies, Term("not given back", round(size * share), _LOST)))


def of_update(parameters: Sequence[nn.Parameter], moments: int) -> Moment:
    """The update by an optimizer: all gradients, and the temporaries for the largest tensor.

    For a half-precision tensor also its copy and its gradient in float32.
    """
    gradients = Term("gradients", sum(p.numel() * p.element_size() for p in parameters), "of what is trained")
    made = [bytes_moved(p) * (1 + moments + 2 * (p.element_size() < 4)) for p in parameters]
    working = Term("working tensors", max(made, default=0), "the move of the largest tensor")
    return Moment("the move of the weights", (gradients, working))


def bytes_moved(parameter: nn.Parameter) -> int:
    """The size of a tensor in the dtype in which an optimizer updates it, at least float32."""
    return parameter.numel() * max(4, parameter.element_size())


def shares_kept(machine: Machine, device: str, packed: bool) -> tuple[float, float]:
    """The shares of freed tensors that the C library keeps: of a forward, and of one with a gradient.

    0 on CUDA, whose peak does not include them.
    """
    if device != "cpu":
        return 0.0, 0.0
    if packed:
        return machine.packed_forward_kept, machine.packed_gradient_kept
    return machine.forward_kept, machine.gradient_kept


def at_peak(held: Held, moments: Sequence[Moment]) -> tuple[Moment, tuple[Term, ...]]:
    """The largest moment, and all terms of the memory then, without those that are zero."""
    largest = max(moments, key=lambda one: one.size)
    terms = (
        Term("process", held.process, "Python and its libraries"),
        Term("weights", held.weights, _READ if held.offloaded else "of the model, as it is loaded"),
        Term("adapter", held.adapter, "tensors beside the weights"),
        Term("optimizer", held.moments, "moments of what is trained"),
        Term("copies of weights", held.copies, "of the method, its evaluator or its rule"),
        *largest.terms,
    )
    return largest, tuple(term for term in terms if term.size)
