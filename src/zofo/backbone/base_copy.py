"""A copy of the weights that training moves, for answers of the model as it was before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from zofo.errors import ModelError, out_of_memory


class BaseCopy:
    """A copy of a model's current weights. Call it later to run the model with them.

    Args:
        parameters: the parameters that training may move. The copy doubles their memory.

    Raises:
        ModelError: the copy does not fit into memory.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        moving = list(parameters)
        try:  # the parameters are held, too, so that no other object takes the place of one
            self._copies = {id(one): (one, nn.Parameter(one.detach().clone(), requires_grad=False)) for one in moving}
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            size = sum(one.nbytes for one in moving) / 2**30
            raise ModelError(
                f"a copy of the weights that move, of {size:.1f} GiB, does not fit into memory",
                "set method.adapter=subspace instead of method.keep_base=true, which keeps none",
            ) from error

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        """Context in which the model's modules hold the copied weights.

        The current weights are neither read nor written, so it can be used within a forward that moves or perturbs
        them.
        """
        held = [
            (module._parameters, name, parameter)
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and id(parameter) in self._copies
        ]
        try:
            for own, name, parameter in held:
                own[name] = self._copies[id(parameter)][1]
            yield
        finally:
            for own, name, parameter in held:
                own[name] = parameter
