"""What a rule does to theta in one step, and to one block of one of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from zofo.backbone.stochastic_rounding import rounding_bits, stochastically_rounded
from zofo.displacement import Displacement, Key
from zofo.errors import NonFiniteError
from zofo.noise import Block, DirectionSampler

Elementwise = Callable[[str, int, Block, torch.Tensor], torch.Tensor]
"""(tensor name, its number of entries, block, the gradient there as float32) -> what is added there."""

_LARGEST = 3e38  # of a coefficient, in float32
DIRECT = (torch.float32, torch.float64)
"""Number types that are added to as they stand."""


@dataclass(frozen=True)
class Update:
    """What a rule does to the backbone in one step: `theta <- (1 - decay_factor) theta + displacement`.

    With `displacement_decay`, `theta <- theta_0 + (1 - displacement_decay) (theta - theta_0) + displacement`.

    Args:
        displacement: what is added; with `dense_update_fn`, the gradient that it turns into what is added.
        decay_factor: the share taken off each tensor that decays (learning rate times weight decay).
        dense_update_fn: for rules that no displacement can express (sign, Adam); None for all others.
        lr: the learning rate that `dense_update_fn` was made with, where it is not the rule's own: a replay needs it.
        displacement_decay: the share by which theta moves back towards theta_0, its value at the first such update;
            None if the displacement from theta_0 is not tracked.
    """

    displacement: Displacement
    decay_factor: float = 0.0
    dense_update_fn: Elementwise | None = None
    lr: float | None = None
    displacement_decay: float | None = None

    @property
    def rounding_key(self) -> Key | None:
        """The newest key, which determines the bits of stochastic rounding."""
        return max(self.displacement, default=None)

    def check_finite(self) -> None:
        """Raise NonFiniteError if a coefficient is not finite in float32."""
        for key, coefficient in self.displacement.items():
            if not abs(coefficient) < _LARGEST:
                raise NonFiniteError(f"update {coefficient} along {key}", key.step)


@dataclass(frozen=True)
class Change:
    """What an update does to one tensor: its decay, the terms it adds, and the key that rounds it."""

    update: Update
    rounding: Key | None
    decay: float
    terms: list[tuple[Key, float]]

    @property
    def is_active(self) -> bool:
        """Whether it changes anything."""
        return bool(self.terms or self.decay or self.update.dense_update_fn is not None)


def write_block(
    name: str, flat: torch.Tensor, block: Block, changes: Sequence[Change], directions: DirectionSampler
) -> None:
    """Apply changes in order to a flat block of a tensor."""
    view, direct = flat[slice(*block)], flat.dtype in DIRECT
    if direct and len(changes) > 1 and not any(change.update.decay_factor for change in changes):
        directions.add_sequentially(view, [change.terms for change in changes], name, block)
        return
    for change in changes:
        piece = view if direct else view.to(torch.float32)
        if change.decay:
            piece.sub_(piece, alpha=change.decay)  # 1 - decay has few digits of a small one in float32
        directions.add_to(piece, change.terms, name, block)
        if (by_rule := change.update.dense_update_fn) is not None:
            gradient = torch.zeros(piece.shape, dtype=torch.float32, device=piece.device)
            directions.add_to(gradient, change.update.displacement.items(), name, block)
            piece.add_(by_rule(name, flat.numel(), block, gradient).to(piece.dtype))
        if not direct and change.rounding is not None and flat.dtype in (torch.bfloat16, torch.float16):
            bits = rounding_bits(change.rounding, name, block, flat.device)
            piece = stochastically_rounded(piece, flat.dtype, bits)
        if not direct:
            view.copy_(piece)
