"""A small least squares problem whose losses, gradients and steps can be written out in explicit vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zofo.methods import SVRG, TrainingContext

N, BATCH, IN, OUT, SEED = 12, 4, 5, 3, 1
LR, LR_FULL = 0.004, 0.006
IN_PLACE = {"noise": "gaussian", "evaluator": "in-place"}
IN_FORWARD = {"noise": "low-rank", "evaluator": "in-forward"}


class LeastSquares(nn.Module):
    """f_i = 1/2 |W x_i + (v . x_i) 1 - y_i|**2, quadratic in a matrix and a vector: a two-sided slope has no bias."""

    def __init__(self, examples=N, dtype=torch.float64):
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        shapes = {"x": (examples, IN), "y": (examples, OUT), "W": (OUT, IN), "v": (IN,)}
        drawn = {n: torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype) for n, shape in shapes.items()}
        self.x, self.y = drawn["x"], drawn["y"]
        self.W, self.v = (nn.Parameter(drawn[name], requires_grad=False) for name in ("W", "v"))

    def forward(self, ids):
        x = self.x[ids]
        return 0.5 * (F.linear(x, self.W) + (x * self.v).sum(-1, keepdim=True) - self.y[ids]).square().sum(-1)

    def theta(self):
        return torch.cat([self.W.flatten(), self.v]).double()

    def residuals(self, theta, ids):
        """At a theta of each example's own: [examples, OUT]."""
        x, W, v = self.x[ids].double(), theta[:, : OUT * IN].view(-1, OUT, IN), theta[:, OUT * IN :]
        return (W @ x.unsqueeze(-1)).squeeze(-1) + (x * v).sum(-1, keepdim=True) - self.y[ids].double()

    def losses_at(self, theta, ids):
        return 0.5 * self.residuals(theta, ids).square().sum(-1)

    def gradients(self, theta, ids=slice(None)):
        """Of each example's loss: [examples, d]."""
        x = self.x[ids].double()
        r = self.residuals(theta.expand(len(x), -1), ids)
        return torch.cat([(r.unsqueeze(-1) * x.unsqueeze(1)).flatten(1), r.sum(-1, keepdim=True) * x], dim=1)


def training_context(model, scale=lambda: 1.0, **options):
    """Examples are row numbers; the loss can be scaled, or spoilt, while training goes on."""
    examples = list(range(len(model.x)))
    return TrainingContext(model, lambda m, ids: m(ids) * scale(), examples, torch.tensor, SEED, **options)


def build(model, scale=lambda: 1.0, kind=SVRG, length=None, **options):
    """A method on the problem; an option that is None is left out."""
    given = {"batch_size": BATCH, "anchor_interval": 5, "rule": {"lr": LR}, "lr_full": LR_FULL, **IN_PLACE, **options}
    given = {key: value for key, value in given.items() if value is not None}
    return kind(kind.Config.model_validate(given), training_context(model, scale, length=length))


def theta_of(method):
    with method.using("model"):
        return torch.cat([tensor.flatten() for tensor in method.backbone.tensors.values()]).double()


def written_out(backbone, displacement):
    """A displacement as one vector."""
    return torch.cat([tensor.flatten() for tensor in backbone.values(displacement).values()]).double()
