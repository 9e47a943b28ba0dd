"""A copy of weights that move, with which the model answers as it did before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from zofo.errors import ModelError, out_of_memory


class BaseCopy:
    """The weights of a model as they are now: called with it later, it answers by them, wherever its own have gone.

    Args:
        parameters: that may move; the copy takes their memory once more.

    Raises:
        ModelError: it does not fit into memory.
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
                "set method.adapter=subspace in place of method.keep_base=true, which keeps none",
            ) from error

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        """While it is open, the modules of the model hold the copies.

        Its own weights are neither read nor written, so that a forward which carries directions of theirs, or moves
        them, may be around it.
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
