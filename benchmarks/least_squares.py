"""MeZO-SVRG on the paper's least squares, simulated in numpy, beside what zofo makes of the same data.

    python benchmarks/least_squares.py [--seeds 3] [--runs 32] [--json FILE]

The simulation shares no code with zofo: losses are asked for at w + mu z and w - mu z in float64, and steps are
Algorithm 1 written out. Settings are those of table 7 of the paper (Gautam et al. 2024), with eta2 = eta1: n = 1000,
d = 100, batches of 32, q = 2, mu = 1e-3, eta1 = eta2 = 1e-3, w = 0 at the start. Printed is the mean loss on the
training data after 1,000 and 6,000 steps with its standard error: on data drawn by numpy, another set for each run; on
zofo's data; and by zofo itself on them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

EXAMPLES, DIMENSIONS, BATCH, Q, MU, ETA = 1000, 100, 32, 2, 1e-3, 1e-3
LABEL_NOISE = 0.1
WAYS = {"mezo": "MeZO", "as-released": "as released", "same": "SVRG, same z"}
LOOKS = (1000, 6000)
ISSUE = {"mezo": (11.7, 0.0146), "as-released": (21.9, 0.0316), "same": (4.4, 0.0090)}
"""What an earlier independent run of three seeds gave."""


class Data(NamedTuple):
    """A problem of each of R runs.

    Args:
        x: float64, [R, n, d], or [1, n, d] where all have the same.
        y: float64, [R, n] or [1, n].
    """

    x: Array
    y: Array


class Chance(Protocol):
    """Where directions and batches come from."""

    def direction(self, step: int, number: int) -> Array:
        """Direction `number` of a step, for each run: [R, d]."""

    def batch(self, number: int) -> npt.NDArray[np.int64]:
        """Examples of the minibatch of that number, for each run: [R, b]."""


class Drawn:
    """Directions and batches by numpy: every epoch in another order, what does not fill a batch left out.

    Args:
        runs: R.
        examples: n.
        dimensions: d.
        seed: of both.
    """

    def __init__(self, runs: int, examples: int, dimensions: int, seed: int) -> None:
        self._draw, self._shape, self._examples = np.random.default_rng(seed), (runs, dimensions), examples
        self._batches = self._epochs()

    def _epochs(self) -> Iterator[npt.NDArray[np.int64]]:
        while True:
            orders = np.stack([self._draw.permutation(self._examples) for _ in range(self._shape[0])])
            for start in range(0, self._examples - BATCH + 1, BATCH):
                yield orders[:, start : start + BATCH]

    def direction(self, step: int, number: int) -> Array:
        """See `Chance.direction`; asked for in order."""
        return self._draw.standard_normal(self._shape)

    def batch(self, number: int) -> npt.NDArray[np.int64]:
        """See `Chance.batch`; asked for in order."""
        return next(self._batches)


def random_data(runs: int, seed: int) -> Data:
    """y = X w* + noise, X and w* standard normal, another problem for each run."""
    draw = np.random.default_rng([seed, 1])
    x = draw.standard_normal((runs, EXAMPLES, DIMENSIONS))
    best = draw.standard_normal((runs, DIMENSIONS, 1))
    return Data(x, (x @ best)[..., 0] + LABEL_NOISE * draw.standard_normal((runs, EXAMPLES)))


def losses(w: Array, data: Data) -> Array:
    """Mean square of the residuals of each run: [R]."""
    if len(data.x) == 1:
        return np.square(w @ data.x[0].T - data.y).mean(1)
    return np.square((data.x @ w[..., None])[..., 0] - data.y).mean(1)


def simulate(way: str, data: Data, chance: Chance, runs: int, looks: tuple[int, ...] = LOOKS) -> Array:
    """The losses of R runs after so many steps.

    Args:
        way: of `WAYS`.
        data: of the runs.
        chance: directions and batches.
        runs: R.
        looks: after how many steps the loss of all data is taken, ascending.

    Returns:
        float64, [looks, R].
    """
    w, g, minibatch, found = np.zeros((runs, data.x.shape[2])), np.zeros(0), 0, []
    anchor = w

    def step_along(at: Array, z: Array, batch: npt.NDArray[np.int64] | None) -> Array:
        """The estimate of the gradient along z, from two losses: [R, d]."""
        some = data
        if batch is not None:
            own = np.arange(len(batch))[:, None] if len(data.x) > 1 else 0
            some = Data(data.x[own, batch], data.y[own, batch])
        slope = (losses(at + MU * z, some) - losses(at - MU * z, some)) / (2 * MU)
        return slope[:, None] * z

    for step in range(max(looks)):
        if way == "mezo":
            w = w - ETA * step_along(w, chance.direction(step, 0), chance.batch(step))
        elif step % Q == 0:
            g, anchor = step_along(w, chance.direction(step, 0), None), w
            w = w - ETA * g
        else:
            batch, z = chance.batch(minibatch), chance.direction(step, 0)
            minibatch += 1
            if way == "same":
                w = w - ETA * (step_along(w, z, batch) - step_along(anchor, z, batch) + g)
            else:  # the paper's code: its anchor is theta itself, and every estimate has a direction of its own
                w = w - ETA * step_along(w, z, batch)
                w = w + ETA * step_along(w, chance.direction(step, 1), batch)
                w = w - ETA * g
        if step + 1 in looks:
            found.append(losses(w, data))
    return np.stack(found)


def by_zofo(way: str, seed: int, looks: tuple[int, ...] = LOOKS) -> Array:
    """The losses of one run of zofo on its own problem, float64, [looks]."""
    from zofo.methods import METHODS
    from zofo.studies.problems import LeastSquares

    problem = LeastSquares(EXAMPLES, DIMENSIONS, LABEL_NOISE)
    given = {"batch_size": BATCH, "noise": "gaussian", "rule": {"lr": ETA}, "estimator": {"epsilon": MU}}
    if way != "mezo":
        given |= {"lr_full": ETA, "anchor_interval": Q, "anchor_chunk": EXAMPLES, "control_variate": way}
    kind = METHODS["mezo" if way == "mezo" else "svrg"]
    method = kind(kind.Config.model_validate(given), problem.training_context(seed))
    found = []
    for step in range(max(looks)):
        method.step(step)
        if step + 1 in looks:
            with method.using("model"):
                found.append(problem.evaluate(method.model, "train")["loss"])
    return np.array(found)


def zofo_data() -> Data:
    """The training data of zofo's problem."""
    from zofo.studies.problems import LeastSquares

    rows = LeastSquares(EXAMPLES, DIMENSIONS, LABEL_NOISE).splits["train"]
    return Data(rows.x.double().numpy()[None], rows.y.double().numpy()[None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of zofo, and of the simulation beside them")
    parser.add_argument("--runs", type=int, default=32, help="runs of the simulation that give its mean more exactly")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    own = zofo_data()
    several, many = f"{options.seeds} seeds", f"{options.runs} runs"
    columns = [f"numpy, {data} data, {runs}" for data in ("its own", "zofo's") for runs in (several, many)]
    header = [*columns, f"zofo, {several}"]
    print("| after 1,000 / 6,000 steps | issue |", " | ".join(header), "|")
    print("|" + "---|" * (len(header) + 2))
    figures = {}
    for way, name in WAYS.items():
        cells = {}
        for column, (data, runs) in zip(
            columns, itertools.product((None, own), (options.seeds, options.runs)), strict=True
        ):
            given = random_data(runs, 0) if data is None else data
            cells[column] = simulate(way, given, Drawn(runs, EXAMPLES, DIMENSIONS, len(cells)), runs)
        cells[header[-1]] = np.stack([by_zofo(way, seed) for seed in range(options.seeds)], axis=1)
        figures[name] = {column: found.tolist() for column, found in cells.items()}
        issue = " / ".join(f"{value:.3g}" for value in ISSUE[way])
        print(f"| {name} | {issue} |", " | ".join(map(shown, cells.values())), "|", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def shown(found: Array) -> str:
    """Mean over runs and its standard error after each number of steps."""
    means, errors = found.mean(1), found.std(1, ddof=1) / np.sqrt(found.shape[1])
    return " / ".join(f"{mean:.3g} ± {error:.1g}" for mean, error in zip(means, errors, strict=True))


if __name__ == "__main__":
    main()
