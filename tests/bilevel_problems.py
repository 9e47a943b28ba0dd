"""Problems for bilevel: one whose solution is known, and a tiny language model."""

from __future__ import annotations

import torch
from torch import nn

from conftest import build_model, build_tokenizer
from zofo import Key, TrainingContext
from zofo.adapters import Adapters
from zofo.noise import permutation
from zofo.objectives import classification_loss
from zofo.tasks import Example, collate, encode

D, LATENT, RHO, N = 32, 6, 1.0, 12
IN_PLACE = {"noise": "gaussian", "evaluator": "in-place"}  # which moves a model whose losses have no rows, too


class Quadratic(nn.Module):
    """F(theta, w; f) = 1/2 |w - a|^2 + rho/2 |theta - b|^2 and F(theta, w; p) = 1/2 |w - M theta - m|^2."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        self.theta = nn.Parameter(torch.randn(D, generator=draw, dtype=torch.float64), requires_grad=False)
        self.w = {name: nn.Parameter(torch.zeros(LATENT, dtype=torch.float64)) for name in ("adapter", "lower_adapter")}
        self.active = "adapter"
        self.M = torch.randn(LATENT, D, generator=draw, dtype=torch.float64) / D**0.5
        self.m, self.a = torch.randn(2, LATENT, generator=draw, dtype=torch.float64)
        self.b = torch.randn(D, generator=draw, dtype=torch.float64)

    def forward(self, roles: list[str]) -> torch.Tensor:
        w = self.w[self.active]
        upper = 0.5 * (w - self.a).square().sum() + RHO / 2 * (self.theta - self.b).square().sum()
        lower = 0.5 * (w - self.M @ self.theta - self.m).square().sum()
        return torch.stack([upper if role == "f" else lower for role in roles])

    def lower_solution(self, theta: torch.Tensor) -> torch.Tensor:
        return self.M @ theta + self.m

    def upper_solution(self, theta: torch.Tensor, penalty: float) -> torch.Tensor:
        """The p that minimises F(theta, p; f) + penalty F(theta, p; p)."""
        return (self.a + penalty * self.lower_solution(theta)) / (1 + penalty)

    def hypergradient(self, theta: torch.Tensor) -> torch.Tensor:
        """Of the true bilevel objective F(theta, w*(theta); f)."""
        return self.M.T @ (self.lower_solution(theta) - self.a) + RHO * (theta - self.b)

    def penalised(self, theta: torch.Tensor, penalty: float) -> torch.Tensor:
        """min over p, max over s of F(theta, p; f) + penalty (F(theta, p; p) - F(theta, s; p)); has a gradient."""
        p, s = self.upper_solution(theta, penalty), self.lower_solution(theta)

        def lower(w: torch.Tensor) -> torch.Tensor:
            return 0.5 * (w - self.M @ theta - self.m).square().sum()

        upper = 0.5 * (p - self.a).square().sum() + RHO / 2 * (theta - self.b).square().sum()
        return upper + penalty * (lower(p) - lower(s))

    def solution(self, penalty: float) -> torch.Tensor:
        """Of the penalised problem, w eliminated: penalty / (1 + penalty) on the lower solution's distance to a."""
        share = penalty / (1 + penalty)
        left = share * self.M.T @ self.M + RHO * torch.eye(D, dtype=torch.float64)
        return torch.linalg.solve(left, share * self.M.T @ (self.a - self.m) + RHO * self.b)


class Vectors(Adapters):
    names = ("adapter", "lower_adapter")

    def __init__(self, model: Quadratic) -> None:
        self.model = model

    def parameters(self, adapter):
        return [self.model.w[adapter]]

    @property
    def active(self):
        return self.model.active

    def use(self, adapter):
        self.model.active = adapter

    def save(self, adapter, folder):
        raise NotImplementedError


def quadratic_context(model: Quadratic, seed: int = 0) -> TrainingContext:
    """Examples are roles, placed so that the method's own split gives D_f the upper and D_p the lower losses."""
    upper = set(permutation(Key(seed, 0), "bilevel/split", N)[: N // 3])
    roles = ["f" if i in upper else "p" for i in range(N)]
    return TrainingContext(model, lambda m, batch: m(batch).to(torch.float64), roles, list, seed)


def language_context(count: int = 24, seed: int = 3) -> TrainingContext:
    """A tiny Llama and sentences with two candidates each."""
    tokenizer = build_tokenizer()
    examples = [Example(f"a joy film number {i} . It was", (" terrible", " great"), (i % 2,)) for i in range(count)]

    def make(chosen):
        return collate(chosen, 0, torch.device("cpu"))

    model = build_model("llama", len(tokenizer))
    return TrainingContext(model, classification_loss, encode(tokenizer, examples), make, seed=seed)
