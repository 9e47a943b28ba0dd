"""The processes of one run, as started by a launcher, and their communication: a few numbers.

Every process has all rows, draws the same directions and makes the same updates. They split each batch, and exchange
the losses. accelerate starts the process group, and transfers the numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

from zofo.errors import ConfigError, Interrupted, NonFiniteError, ProcessError, ZofoError, truncate_repr

T = TypeVar("T")
R = TypeVar("R")

_FAILED = -1.0
_PATIENCE = timedelta(days=7)  # an evaluation may last; one that ends is noticed at once
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


class Attempt:
    """Context that holds back an error, so that the other processes learn of it first.

    Attributes:
        failure: the error; None for none.
    """

    failure: Exception | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.failure = error if isinstance(error, Exception) else None
        return self.failure is not None


class Processes:
    """This process and the others of its run; a single one by default.

    Each exchange begins with one number from every process: 0, a failure, or the number of the signal that asked it to
    stop. So no process waits for a failed one, and all stop after the same step.

    Args:
        rank: rank of this process, from 0.
        size: number of processes.
        device: device of exchanged numbers.

    Attributes:
        bytes: total size of losses and gradients that all processes have sent so far.
        signal: number of the signal that asked this process to stop; 0 for none.
        asked: the same of any process, which all of them know.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self._device = rank, size, device
        self.bytes = 0
        self.signal: Callable[[], int] = lambda: 0
        self.asked = 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, number: int, rank: int | None = None) -> tuple[int, int]:
        """Which of so many examples are those of a process: from the first to before the second number.

        Args:
            number: of examples; the shares of two processes differ by one at most.
            rank: of which process; by default this one.
        """
        own = self.rank if rank is None else rank
        return number * own // self.size, number * (own + 1) // self.size

    def gather(
        self, numbers: torch.Tensor | None, width: int, dtype: torch.dtype, failure: Exception | None = None
    ) -> torch.Tensor:
        """Gather numbers from all processes.

        Args:
            numbers: the numbers of this process, in any shape; None if it failed.
            width: the maximum count over processes.
            dtype: dtype of the exchange.
            failure: why this process has none.

        Returns:
            One row per process, with its numbers first: [processes, width], on the CPU.

        Raises:
            ProcessError: another process failed, or has ended.
        """
        sent = torch.zeros(1 + width, dtype=dtype)
        sent[0] = _FAILED if failure is not None else self.signal()
        if numbers is not None:
            sent[1 : 1 + numbers.numel()] = numbers.detach().reshape(-1).cpu()
        found = self._gathered(sent)
        self.bytes += found.nbytes
        self._heed(found[:, 0], failure)
        return found[:, 1:]

    def add(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, with the same bits in each of them."""
        from accelerate.utils import reduce

        self.bytes += numbers.nbytes * self.size
        own = numbers.to(self._device)
        with self._together():
            total: torch.Tensor = reduce(own, "sum")
        return total.to(numbers.device)

    def gather_json(self, value: Any, failure: Exception | None = None) -> list[Any]:
        """A JSON value from every process, in order.

        Raises:
            ProcessError: another process failed, or has ended.
        """
        if self.alone:
            if failure is not None:
                raise failure
            return [value]
        text = bytearray(json.dumps(value).encode())
        header = torch.tensor([_FAILED if failure is not None else self.signal(), len(text)], dtype=torch.float64)
        headers = self._gathered(header)
        self._heed(headers[:, 0], failure)
        lengths = [int(length) for length in headers[:, 1]]
        sent = torch.zeros(max(lengths), dtype=torch.uint8)
        sent[: len(text)] = torch.frombuffer(text, dtype=torch.uint8)
        found = self._gathered(sent)
        return [json.loads(bytes(row[:length].tolist()).decode()) for row, length in zip(found, lengths, strict=True)]

    def first(self, work: Callable[[], T]) -> T:
        """The JSON result of the first process, in all of them. Its error is raised in all of them, too."""
        if self.alone:
            return work()
        found = None
        with Attempt() as made:
            found = work() if self.is_first else None
        value: T = self.gather_json(found, made.failure)[0]
        return value

    def each(self, items: Sequence[T], work: Callable[[T], R]) -> list[R]:
        """The JSON results of some work on each item, shared among the processes, in order."""
        if self.alone:
            return [work(item) for item in items]
        own: list[R] = []
        with Attempt() as made:
            own = [work(item) for item in items[self.rank :: self.size]]
        found = self.gather_json(own, made.failure)
        return [found[number % self.size][number // self.size] for number in range(len(items))]

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Context in which all processes do the same; on exit they know whether all succeeded.

        An error that several have is reported by the first of them.

        Raises:
            ProcessError: another process could not.
        """
        if self.alone:
            yield
            return
        with Attempt() as made:
            yield
        failure = made.failure
        said = self.gather_json(None if failure is None else str(failure))
        if failure is not None:
            if isinstance(failure, ZofoError):
                failure.quiet = said.index(str(failure)) < self.rank
            raise failure
        if failed := [rank for rank, text in enumerate(said) if text is not None]:
            raise self._of_failed(failed[0])

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Context in which an error of all processes is reported by the first, and any other by its own process."""
        try:
            yield
        except (ZofoError, Interrupted) as error:
            if error.quiet is None:
                error.quiet = isinstance(error, NonFiniteError | Interrupted) and not self.is_first
            raise

    def check_same(self, own: Mapping[str, Any], hint: str) -> None:
        """Raise ConfigError if a JSON value is not the same in all processes."""
        first, *others = self.gather_json(dict(own))
        for rank, other in enumerate(others, start=1):
            for key, value in other.items():
                if value != first.get(key):
                    values = (
                        f"{truncate_repr(value)} in process {rank}, and {truncate_repr(first.get(key))} in process 0"
                    )
                    raise self.differs(ConfigError, f"{key} is {values}", hint)

    def differs(self, error: type[ZofoError], message: str, hint: str) -> ZofoError:
        """An error that all processes find when they compare values, reported by the first one."""
        found = error(message, hint)
        found.quiet = not self.is_first
        return found

    def _gathered(self, numbers: torch.Tensor) -> torch.Tensor:
        from accelerate.utils import gather

        own = numbers.to(self._device)
        with self._together():
            found: torch.Tensor = gather(own)
        return found.cpu().view(self.size, -1)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            lost = ProcessError(
                f"another of the {self.size} processes has ended, so that this one cannot go on", GOES_ON
            )
            lost.quiet = self.rank > 1  # one of the first two is left to say it
            raise lost from error

    def _heed(self, states: torch.Tensor, failure: Exception | None) -> None:
        """Raise if a process has failed, and take notice of a signal."""
        if failure is not None:
            raise failure
        failed = (states == _FAILED).nonzero()
        if len(failed):
            raise self._of_failed(int(failed[0, 0]))
        self.asked = max(self.asked, int(states.max()))

    def _of_failed(self, rank: int) -> ProcessError:
        found = ProcessError(f"process {rank} of {self.size} could not go on, and says why", GOES_ON)
        found.quiet = True
        return found


GOES_ON = "type the same command again: a run goes on from its newest checkpoint"
"""What to do when another process has ended."""

ALONE = Processes()
"""One process, as usual."""


def joined() -> Processes:
    """The processes that a launcher such as `accelerate launch` or `torchrun` has started; a single one without a
    launcher.

    Raises:
        ConfigError: the launcher is configured to shard models, or the processes cannot find each other.
    """
    check_whole()
    typed = os.environ.get("WORLD_SIZE", "") or "1"
    if not typed.isdecimal():
        raise ConfigError(f"WORLD_SIZE is {typed!r}, which is no number of processes", "unset WORLD_SIZE")
    launched = int(typed)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        launched = torch.distributed.get_world_size()
    if launched == 1:
        return Processes()
    from accelerate import PartialState

    state = _started(PartialState)
    if state.num_processes != launched:
        raise ConfigError(
            f"there are {launched} processes, but accelerate finds {state.num_processes}: each would train by itself",
            "start them with torchrun or accelerate launch, or unset WORLD_SIZE; on CPUs, a transformers.Trainer "
            "needs use_cpu=True, and an Accelerator cpu=True",
        )
    return Processes(state.process_index, state.num_processes, state.device)


def _started(kind: Any) -> Any:
    """accelerate's state, with the process group started, on the CPU if there is no other device."""
    if kind._shared_state:
        return kind()
    from_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    try:
        return kind(cpu=from_cpu or not torch.accelerator.is_available(), timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        kind._reset_state()  # which is half made
        raise ConfigError(
            f"the processes cannot find each other: {error}",
            "start them with torchrun or accelerate launch, or unset WORLD_SIZE, RANK and LOCAL_RANK",
        ) from error


def check_whole() -> None:
    """Raise ConfigError if accelerate is configured to shard the tensors of a model."""
    for variable, what in _SHARDING.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise ConfigError(
                f"accelerate is configured for {what}, which cuts tensors into pieces, and each step writes whole ones",
                "launch with `accelerate launch --multi_gpu --num_processes N`, or choose no "
                f"{what} in `accelerate config`",
            )
