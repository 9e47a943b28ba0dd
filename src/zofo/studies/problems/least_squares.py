"""Least squares with known best weights, the first toy problem of the MeZO-SVRG paper."""

from __future__ import annotations

import torch
from torch import nn

from zofo.config import NonNegative
from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise import Gaussian
from zofo.studies.problems.base import PROBLEMS, Count, Problem, Rows, Seed


class LinearModel(nn.Module):
    """x -> x . w, with w = 0 at the start.

    Attributes:
        w: the only parameter, a plain vector, so that every noise draws independent entries of it.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(dimensions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [examples, dimensions] -> [examples], as an element-wise product, which supports the evaluator
        `in-forward`."""
        return (x * self.w).sum(-1)


@PROBLEMS.register("least-squares")
class LeastSquares(Problem):
    """min over w of (1/n) |X w - y|^2, with y = X w* + noise, X and w* standard normal.

    From w = 0 the loss starts near |w*|^2 + label_noise^2. Its minimum on the training split is about label_noise^2 (1
    - d / n): 0.009 with the defaults. Validation and test are drawn like the training split, with the same w*.

    Args:
        examples: n, of each split.
        dimensions: d.
        label_noise: standard deviation of the noise in y.
        data_seed: seed of X, w* and the noise.

    Attributes:
        best: w*.
        least: the lowest loss that any w has on the training split.

    Raises:
        ConfigError: there are fewer examples than dimensions, so that the best w is not unique.

    Source: MeZO-SVRG (Gautam et al. 2024), section B.2, equation 14, with n = 1000 and d = 100. The paper writes the
    sum of squares and does not give the noise or the start; with its learning rates only the mean converges.
    """

    metric = "loss"
    higher_is_better = False

    def __init__(
        self, examples: Count = 1000, dimensions: Count = 100, label_noise: NonNegative = 0.1, data_seed: Seed = 0
    ) -> None:
        if examples < dimensions:
            raise ConfigError(
                f"problem.examples is {examples}, fewer than the {dimensions} dimensions, so that no w is the best",
                f"set problem.examples to {dimensions} or more",
            )
        self.best = _normal(data_seed, "best", (dimensions,))
        self.splits = {}
        for split in ("train", "validation", "test"):
            x = _normal(data_seed, f"{split}/x", (examples, dimensions))
            noise = _normal(data_seed, f"{split}/noise", (examples,))
            self.splits[split] = Rows(x, x @ self.best + label_noise * noise)
        train = self.splits["train"]
        exact = torch.linalg.lstsq(train.x.double(), train.y.double().unsqueeze(1)).solution
        self.least = (train.x.double() @ exact - train.y.double().unsqueeze(1)).square().mean().item()

    def model(self, seed: int) -> LinearModel:
        """A linear model; every run starts at 0."""
        return LinearModel(len(self.best))

    def losses(self, model: nn.Module, rows: Rows) -> torch.Tensor:
        """The square of each residual."""
        found: torch.Tensor = model(rows.x)
        return (found - rows.y).square()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """The mean square of the residuals, in float64."""
        return {"loss": self.losses(model, self.rows(split)).double().mean().item()}


def _normal(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers, the same on every machine, from streams that no tensor's directions use."""
    return Gaussian().whole(Key(seed, 0), f"least-squares/{name}", shape)
