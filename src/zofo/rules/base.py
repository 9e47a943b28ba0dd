"""The contract of rules: how an estimate becomes an update. State goes in and comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch

from zofo.backbone import Update
from zofo.displacement import Displacement
from zofo.estimators import Estimate
from zofo.registry import Registry


@dataclass(frozen=True)
class State:
    """What a rule remembers between steps.

    Args:
        steps: updates made so far.
        momentum: the decaying sum of gradients, for rules that keep it as a displacement.
        mean_square: the running mean of the squared length of gradients, for rules that divide by its root; else None.
        buffers: parameter-sized float32 tensors by buffer and tensor name, for rules that say they are dense. They are
            written in place while an update is written.
    """

    steps: int = 0
    momentum: Displacement = field(default_factory=Displacement)
    mean_square: float | None = None
    buffers: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


class Rule(ABC):
    """Turns estimates into updates.

    Attributes:
        linear: whether updates are displacements; otherwise they are written out entry by entry, and a trajectory
            holds the gradients the rule was given.
        plain: whether an update is -lr times the estimate, but for weight decay, so that `lr` means what it does for
            `sgd` and has the same default, which the method decides.
        dense_buffers: how many parameter-sized buffers the rule keeps; zero for all but those that say so.
        buffer_bytes: of an entry of these.
        displacement_decay: the share of what theta has moved that each update takes back; 0 for all but those that are
            given one, whose updates then say so.
    """

    linear = True
    plain = False
    dense_buffers = 0
    buffer_bytes = 4
    displacement_decay: float = 0.0

    def init(self) -> State:
        """The state before the first update."""
        return State()

    @abstractmethod
    def update(self, estimate: Estimate, state: State, lr: float | None = None) -> tuple[Update, State]:
        """The update that `estimate` leads to, and the next state.

        Args:
            estimate: what the step found.
            state: from the step before.
            lr: the learning rate of this step, in place of the rule's own.
        """


RULES: Registry[type[Rule]] = Registry("rule")
