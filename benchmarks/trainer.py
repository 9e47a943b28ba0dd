"""What a step in a `transformers.Trainer` costs beside one of zofo's own loop: the ratio of docs/integrations.md.

    python benchmarks/trainer.py --model smollm2-135m --rows 1 --tokens 32 --steps 20 --json FILE

Two copies of a model make the same steps on the same rows in turn, one in `ZerothOrderTrainer` and one in `zofo.MeZO`,
a step each. The time of a step in the trainer is that from one call of its data loader to the next. Of all pairs but
the first three the median of the ratio is printed, for each evaluator. Times are those of the processor, which other
processes on the machine disturb less than a clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import zofo
from zofo.integrations.losses import example_losses
from zofo.integrations.transformers import ZerothOrderTrainer, ZerothOrderTrainingArguments

FIRST = 3  # steps that are not counted


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
    parser.add_argument("--rows", type=int, default=1, help="of a batch")
    parser.add_argument("--tokens", type=int, default=32, help="of a row")
    parser.add_argument("--steps", type=int, default=20, help="that are timed")
    parser.add_argument("--evaluators", nargs="+", default=["in-place", "in-forward"])
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def own_method(model: Any, rows: list[Any], size: int, evaluator: str) -> zofo.MeZO:
    def objective(model: Any, batch: Any) -> torch.Tensor:
        return example_losses(model, batch, shifted=True)

    context = zofo.TrainingContext(model, objective, rows, collate)
    method = zofo.MeZO(zofo.MeZOConfig(batch_size=size, evaluator=evaluator, rule={"name": "sgd", "lr": 1e-7}), context)
    method.check()
    return method


class InTurn(transformers.TrainerCallback):
    """After each step of the trainer, one of zofo's own loop."""

    def __init__(self, method: zofo.MeZO) -> None:
        self.method, self.last = method, time.process_time()
        self.seconds: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = time.process_time() - self.last
        start = time.process_time()
        self.method.step(state.global_step - 1)
        self.seconds.append((trainer, time.process_time() - start))
        self.last = time.process_time()


def measure(options: argparse.Namespace, evaluator: str) -> dict[str, float]:
    model = zofo.load_model(options.model).model
    drawn = torch.randint(10, 1000, (64, options.tokens), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in drawn.tolist()]
    turns = InTurn(own_method(copy.deepcopy(model), rows, options.rows, evaluator))
    with tempfile.TemporaryDirectory() as folder:
        args = ZerothOrderTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=options.rows,
            max_steps=FIRST + options.steps,
            learning_rate=1e-7,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            zo_evaluator=evaluator,
        )
        trainer = ZerothOrderTrainer(model, args, data_collator=collate, train_dataset=rows, callbacks=[turns])
        trainer.train()
    counted = turns.seconds[FIRST:]
    return {
        "trainer": statistics.median(one for one, _ in counted),
        "zofo": statistics.median(own for _, own in counted),
        "ratio": statistics.median(one / own for one, own in counted),
    }


def main() -> None:
    options = arguments()
    figures = {}
    for evaluator in options.evaluators:
        figures[evaluator] = found = measure(options, evaluator)
        times = f"{found['trainer']:.3f} s in the trainer, {found['zofo']:.3f} s in zofo's loop"
        print(f"{evaluator}: {times}, ratio {found['ratio']:.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
