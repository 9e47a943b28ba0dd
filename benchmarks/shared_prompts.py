"""How many tokens of batches are saved where the candidates of one example share their prompt.

    python benchmarks/shared_prompts.py --data FOLDER [--model smollm2-135m] [--json FILE]

FOLDER holds a folder for each task, with its rows as train.jsonl. All rows are taken in their order; a batch's tokens
are those of its tensor, padding counted. "Before" is `collate` told to pack nothing, "after" its own choice.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from zofo.errors import ZofoError
from zofo.models import load_tokenizer
from zofo.tasks import collate, encode, load_examples, resolve_task
from zofo.training import read_config

SEVERAL_TOKENS = "task.verbalizers={0: ' Yes, that is so', 1: ' No, it is false', 2: ' Maybe, nobody can say'}"
PLACES = (
    ("COPA, batches of 16", "copa", 16, []),
    ("CB with answers of several tokens, batches of 16", "cb", 16, [SEVERAL_TOKENS]),
    ("ReCoRD, one example a batch", "record", 1, []),
    ("CB with one-word answers, batches of 16", "cb", 16, []),
)


def counted(task: str, batch: int, changed: list[str], data: Path, model: str) -> dict[str, int]:
    """Padded tokens of the batches of a task's training rows, before and after."""
    given = [f"model={model}", f"task={task}", f"task.data={data / task / 'train.jsonl'}"]
    config = read_config(None, [*given, *changed])
    examples = load_examples(resolve_task(config.task, whole=True), config.task, ["train"])["train"]
    rows = encode(load_tokenizer(config.model), examples)
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    device = torch.device("cpu")
    tokens = [[collate(one, 0, device, limit).input_ids.numel() for limit in (0, None)] for one in batches]
    before, after = (sum(column) for column in zip(*tokens, strict=True))
    return {"rows": len(rows), "before": before, "after": after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the tasks' folders")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer")
    parser.add_argument("--json", type=Path, help="write the figures there, one line a row of the table")
    options = parser.parse_args()
    lines = []
    for name, task, batch, changed in PLACES:
        try:
            found = counted(task, batch, changed, options.data, options.model)
        except ZofoError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from error
        lines.append({"data": name, "batch": batch, **found})
        saved = 1 - found["after"] / found["before"]
        print(f"{name}: {found['before']:,} -> {found['after']:,} tokens, {100 * saved:.0f} % saved", flush=True)
    if options.json:
        options.json.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
