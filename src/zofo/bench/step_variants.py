"""The ways to make one training step that `zofo bench step` compares, all with the same examples."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from zofo.backbone import Update
from zofo.config import parse_model
from zofo.displacement import Displacement
from zofo.evaluators import InForward
from zofo.methods import FirstOrder, FirstOrderConfig, TrainingContext, ZerothOrder, ZerothOrderConfig
from zofo.objectives import classification_loss
from zofo.tasks import Batch, TokenizedChoices, collate

EPSILON, LR = 1e-3, 1e-7
"""Of all zeroth-order steps; so small a rate leaves the losses as they are."""
CANDIDATES = (5, 6)
"""Of every example, one token each."""
_FIRST_WORD = 10  # lower ids are often special tokens


@dataclass(frozen=True)
class StepOptions:
    """The options of `zofo bench step`.

    Args:
        model: an embedded model, a folder or a Hub id.
        examples: batch size B.
        tokens: tokens of each example's prompt.
        rank: rank of the low-rank noise.
        repeats: number of rounds in which every way is timed.
        dtype: dtype of the weights.
        trainable: patterns of the tensors that zofo's zeroth-order steps move; None for all.
    """

    model: str = "smollm2-135m"
    examples: int = 16
    tokens: int = 64
    rank: int = 1
    repeats: int = 5
    dtype: str = "float32"
    trainable: Sequence[str] | None = None


class StepVariant(ABC):
    """A way to make steps, built for one model.

    Args:
        step: makes step `number`.
        device: where it works.
    """

    def __init__(self, step: Callable[[int], object], device: torch.device) -> None:
        numbers = itertools.count()
        self.step: Callable[[], object] = lambda: step(next(numbers))
        self.device = device

    @abstractmethod
    def prepare(self) -> None:
        """Make the first steps, which allocate buffers; they are not counted."""

    @abstractmethod
    def seconds(self) -> float:
        """Make one or more steps, and return the average time of one."""


class UniformSteps(StepVariant):
    """Steps that all cost the same."""

    def prepare(self) -> None:
        self.step()

    def seconds(self) -> float:
        return timed(self.step, self.device)


class AmortizedSteps(StepVariant):
    """In-forward steps, whose updates stay pending and are written together: a cycle of n steps, then one write.

    A step costs a little more with each pending update, so the step in the middle of the cycle (or the two there, if n
    is even) has the average cost of the cycle. It is timed with that many pending updates. After more steps that are
    not timed, n - 1 updates are pending. Writing them is timed separately and divided by n - 1. So the share is, if
    anything, too large: most of the cost of a write does not grow with the number of updates. `prepare` makes one whole
    cycle, and learns n.

    Args:
        step: makes step `number`.
        evaluator: the evaluator of the steps.
        device: the device.
    """

    def __init__(self, step: Callable[[int], object], evaluator: InForward, device: torch.device) -> None:
        super().__init__(step, device)
        self.evaluator = evaluator
        self.cycle, self._waiting = 0, Displacement()

    def prepare(self) -> None:
        waiting = [Displacement()]  # before each step of the cycle
        while len(waiting) == 1 or len(waiting[-1]):
            self.step()
            waiting.append(self.evaluator.theta.pending)
        self.cycle = len(waiting) - 1
        self._waiting = waiting[(self.cycle - 1) // 2]

    def seconds(self) -> float:
        if len(self._waiting):  # their factors are cached from the previous steps, as in a cycle
            self.evaluator.theta.apply(Update(self._waiting))
        steps = 2 - self.cycle % 2
        taken = sum(timed(self.step, self.device) for _ in range(steps)) / steps
        written = (self.cycle - 1) // 2 + steps
        for _ in range(written, self.cycle - 1):
            self.step()
        written = max(written, self.cycle - 1)
        # in a cycle of one or two steps the last one writes by itself, and nothing is left here
        return taken + timed(self.evaluator.theta.flush, self.device) / written


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, until the device has finished."""
    _wait_for(device)
    start = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def random_examples(vocabulary: int, options: StepOptions) -> list[TokenizedChoices]:
    """Prompts of random tokens, each with two candidates of one token."""
    generator = torch.Generator().manual_seed(0)
    shape = options.examples, options.tokens
    prompts = torch.randint(_FIRST_WORD, vocabulary, shape, generator=generator).tolist()
    rows = [tuple((*prompt, candidate) for candidate in CANDIDATES) for prompt in prompts]
    return [TokenizedChoices(row, (1,) * len(CANDIDATES), gold=i % len(CANDIDATES)) for i, row in enumerate(rows)]


def _batch(model: Any, options: StepOptions) -> Batch:
    examples = random_examples(model.config.get_text_config().vocab_size, options)
    return collate(examples, 0, model.device)


def _inference(model: Any, options: StepOptions) -> StepVariant:
    """The forward of 2 B rows, the batch twice: the minimum of a two-sided step."""
    twice = _batch(model, options).repeated(2)

    @torch.no_grad()
    def forward(number: int) -> None:
        classification_loss(model, twice)

    return UniformSteps(forward, model.device)


def _mezo_usual(model: Any, options: StepOptions) -> StepVariant:
    """The usual step of MeZO, for comparison."""
    examples = random_examples(model.config.get_text_config().vocab_size, options)
    ids = torch.tensor([row for example in examples for row in example.rows], device=model.device)
    gold = torch.tensor([example.gold for example in examples], device=model.device)
    return UniformSteps(lambda number: usual_step(model, ids, gold, number), model.device)


@torch.no_grad()
def usual_step(
    model: Any, ids: torch.Tensor, gold: torch.Tensor, number: int, lr: float = LR, epsilon: float = EPSILON
) -> float:
    """A MeZO step as it is commonly written: four sweeps over the weights, and a sequence for each candidate.

    Each sweep seeds a generator, draws a `torch.normal` of each parameter's size, and replaces the parameter's data by
    a sum. Usual code seeds the global generator, which costs the same.

    Args:
        model: the model; the data of all its parameters are replaced.
        ids: [B * candidates, L] each prompt with each of its candidates, which is the last token.
        gold: [B] index of the right candidate.
        number: number of the step, which seeds the direction.
        lr: learning rate.
        epsilon: distance of the two points from theta.

    Returns:
        The projected gradient.

    Source: `zo_step` and `zo_update` of the code of MeZO (Malladi et al. 2023), without weight decay.
    """
    generator = torch.Generator(ids.device)

    def sweep(scale: float, size: float) -> None:
        generator.manual_seed(number)
        for parameter in model.parameters():
            shape, dtype = parameter.shape, parameter.dtype
            z = torch.normal(0.0, 1.0, size=shape, dtype=dtype, device=parameter.device, generator=generator)
            parameter.data = parameter.data + scale * z * size

    sweep(1, epsilon)
    plus = usual_loss(model, ids, gold)
    sweep(-2, epsilon)
    minus = usual_loss(model, ids, gold)
    sweep(1, epsilon)
    projected_gradient = ((plus - minus) / (2 * epsilon)).item()
    sweep(-lr, projected_gradient)
    return projected_gradient


def usual_loss(model: Any, ids: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """The mean classification loss as it is commonly written: from the likelihoods of all tokens at all positions."""
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    likelihoods = logits[:, :-1].log_softmax(dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return F.cross_entropy(likelihoods[:, -1].view(len(gold), -1), gold)


def _zeroth_order(model: Any, options: StepOptions, **parts: Any) -> StepVariant:
    """A two-sided step of zofo on the whole model, or on the trainable part."""
    if options.trainable:
        parts["trainable"] = list(options.trainable)
    tree = {"estimator": {"name": "two-sided", "epsilon": EPSILON}, "rule": {"name": "sgd", "lr": LR}, **parts}
    zo = ZerothOrder(parse_model(ZerothOrderConfig, tree), model, 0, options.examples)
    asks = [(classification_loss, _batch(model, options))]
    if isinstance(zo.evaluator, InForward):
        return AmortizedSteps(lambda number: zo.step(number, asks), zo.evaluator, model.device)
    return UniformSteps(lambda number: zo.step(number, asks), model.device)


def _in_place(model: Any, options: StepOptions) -> StepVariant:
    """The step in place, with Gaussian noise."""
    evaluator = {"name": "in-place", "allow_half": True}  # only its cost matters
    return _zeroth_order(model, options, noise="gaussian", evaluator=evaluator)


def _in_forward(model: Any, options: StepOptions, directions: str) -> StepVariant:
    """The step in the forward, with low-rank noise."""
    noise = {"name": "low-rank", "rank": options.rank}
    return _zeroth_order(model, options, noise=noise, evaluator="in-forward", directions=directions)


def _first_order(model: Any, options: StepOptions, parameters: Literal["adapter", "all"]) -> StepVariant:
    """The step by back-propagation, with Adam."""
    batch = _batch(model, options)
    context = TrainingContext(model, classification_loss, range(options.examples), lambda chosen: batch)
    method = FirstOrder(FirstOrderConfig(batch_size=options.examples, parameters=parameters), context)
    return UniformSteps(method.step, model.device)


WAYS: dict[str, Callable[[Any, StepOptions], StepVariant]] = {
    "inference": _inference,
    "mezo-usual": _mezo_usual,
    "in-place": _in_place,
    "in-forward-shared": lambda model, options: _in_forward(model, options, "shared"),
    "in-forward-per-example": lambda model, options: _in_forward(model, options, "per-example"),
    "fo-lora": lambda model, options: _first_order(model, options, "adapter"),
    "fo-full": lambda model, options: _first_order(model, options, "all"),
}
"""The ways by name, as the table shows them: (model, options) -> the way."""
