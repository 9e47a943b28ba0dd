"""The memory of a run: what its process holds at its largest moment, term by term.

A process holds, all the time: itself with its libraries, the weights, what an adapter adds, and what an optimiser
keeps. On top of that comes the largest of these moments:

- a forward and backward: what each layer keeps for the gradient, logits, gradients, and what one operation needs;
- a forward without a gradient, of all points of a zeroth-order step: logits, and what one operation needs;
- the check before the first step: copies of one tensor of each kind, moved by hand;
- the move of weights by an optimiser;
- an evaluation.

And the C library keeps a share of what was freed, in holes between what stays.

What tensors take at each moment is not put into formulas: the passes are run on tensors without numbers and every
allocation is counted (`zofo.estimate.ledger`), so that an architecture needs nothing of its own here.
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
_CHECKED = 1 << 26  # entries of a tensor up to which the check moves it


@dataclass(frozen=True)
class Term:
    """A part of the memory at the largest moment, its size in bytes.

    Args:
        about: where it comes from, in a few words.
    """

    name: str
    size: int
    about: str


@dataclass(frozen=True)
class Held:
    """What a run holds all the time, in bytes.

    Args:
        process: Python and its libraries; on CUDA 0, since torch's allocator has nothing of them.
        weights: of the model, as they are packed; of one whose weights stay in their files, the largest of them, which
            a forward reads at once: the system can drop the pages of all others.
        copies: of theta, and float32 buffers of a rule.
        offloaded: whether the weights stay in their files.
    """

    process: int
    weights: int
    adapter: int = 0
    moments: int = 0
    copies: int = 0
    offloaded: bool = False


@dataclass(frozen=True)
class Moment:
    """A moment of a run that may be its largest.

    Args:
        terms: what it takes beside what is held, in bytes.
    """

    name: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """All of it, in bytes."""
        return sum(term.size for term in self.terms)


def of_pass(name: str, found: Trace, gradient: bool, shares: tuple[float, float]) -> Moment:
    """The largest moment of a forward, or of a forward and backward.

    Args:
        shares: of a forward, and of one with a gradient, that the C library keeps.
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
    """The check before the first step of low-rank terms in the forward, in float32: one tensor of each kind stands
    beside its copy.

    Args:
        share: of these that the C library keeps.
    """
    kinds: dict[str, int] = {}
    for name, parameter in moved.named_parameters():
        if parameter.numel() <= _CHECKED:
            kinds.setdefault(re.sub(r"\d+", "*", name), parameter.numel() * parameter.element_size())
    size = sum(kinds.values())
    copies = Term("copies for the check", size, "of one tensor of each kind, before the first step")
    return Moment("the check before the first step", (copies, Term("not given back", round(size * share), _LOST)))


def of_update(parameters: Sequence[nn.Parameter], moments: int) -> Moment:
    """The move by an optimiser: all gradients, and for the largest tensor what the move is made of; of one in half
    precision, its copy and its gradient in float32, too."""
    gradients = Term("gradients", sum(p.numel() * p.element_size() for p in parameters), "of what is trained")
    made = [bytes_moved(p) * (1 + moments + 2 * (p.element_size() < 4)) for p in parameters]
    working = Term("working tensors", max(made, default=0), "the move of the largest tensor")
    return Moment("the move of the weights", (gradients, working))


def bytes_moved(parameter: nn.Parameter) -> int:
    """A tensor of its size in the number type that an optimiser moves it in, at least float32."""
    return parameter.numel() * max(4, parameter.element_size())


def shares_kept(machine: Machine, device: str, packed: bool) -> tuple[float, float]:
    """The shares of freed tensors that the C library keeps: of a forward, and of one with a gradient; 0 on CUDA, whose
    peak is counted without them."""
    if device != "cpu":
        return 0.0, 0.0
    if packed:
        return machine.packed_forward_kept, machine.packed_gradient_kept
    return machine.forward_kept, machine.gradient_kept


def at_peak(held: Held, moments: Sequence[Moment]) -> tuple[Moment, tuple[Term, ...]]:
    """The largest moment, and all terms of the memory then; those that are nothing are left out."""
    largest = max(moments, key=lambda one: one.size)
    terms = (
        Term("process", held.process, "Python and its libraries"),
        Term("weights", held.weights, _READ if held.offloaded else "of the model, as it is loaded"),
        Term("adapter", held.adapter, "tensors beside the weights"),
        Term("optimiser", held.moments, "moments of what is trained"),
        Term("copies of weights", held.copies, "of the method, its evaluator or its rule"),
        *largest.terms,
    )
    return largest, tuple(term for term in terms if term.size)
