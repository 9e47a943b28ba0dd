"""Runs of the tiny model for tests of what is made of runs, with what such tests look at."""

from __future__ import annotations

import hashlib
import json

import torch
import transformers
from peft import PeftModel

from conftest import review_rows, write_rows
from zofo.adapters.base import quiet_peft
from zofo.training import read_config, train

STEPS = 5
METHOD = {
    "mezo": {"name": "mezo", "batch_size": 4, "rule": {"lr": 1e-3}},
    "bilevel": {"name": "bilevel", "batch_size": 2, "inner_steps": 1, "rule": {"lr": 1e-3}},
    "in place": {"name": "mezo", "batch_size": 4, "noise": "gaussian", "rule": {"lr": 1e-4}},
    "weight decay": {"name": "mezo", "batch_size": 4, "rule": {"lr": 1e-3, "weight_decay": 0.1}},
    "adapter": {"name": "mezo", "batch_size": 4, "adapter": "lora"},
    "first-order": {"name": "first-order", "batch_size": 4},
    "dora": {"name": "first-order", "batch_size": 4, "adapter": "dora"},
    "ia3": {"name": "first-order", "batch_size": 4, "adapter": "ia3"},
    "prefix": {"name": "bilevel", "batch_size": 2, "inner_steps": 1, "adapter": "prefix", "rule": {"lr": 1e-3}},
    "head": {"name": "first-order", "batch_size": 4, "parameters": "all", "lr": 1e-3},
    "probe": {"name": "linear-probe"},
    "zero-shot": {"name": "zero-shot"},
    "two-stage": {"name": "two-stage", "batch_size": 4, "adapter_steps": 2, "rule": {"lr": 1e-3}},
}
MERGED = ("mezo", "bilevel", "in place", "weight decay", "adapter", "first-order", "dora", "ia3", "head", "two-stage")


def maker(model_folder, folder):
    """What gives runs of the tiny model by case, each trained once; they are only read."""
    runs = {}
    for split, rows in (("train", review_rows(24)), ("validation", review_rows(6, 60))):
        write_rows(folder / "data" / f"{split}.jsonl", rows)

    def run(case, name=None, model=None, start=None, **training):
        key = name or case
        if key not in runs:
            given = {
                "model": {"name": str(model_folder), **(model or {})},
                "task": {"data_dir": str(folder / "data")},
                "method": METHOD[case],
                "training": {"steps": STEPS, "eval_steps": 3, **training},
                "output_dir": str(folder / key),
                **({"init_from": str(start)} if start is not None else {}),
            }
            (folder / f"{key}.yaml").write_text(json.dumps(given), encoding="utf-8")
            runs[key] = train(read_config(str(folder / f"{key}.yaml"), []))
        return runs[key]

    return run


IDS = torch.tensor([[5, 17, 42, 8, 99, 120, 3], [7, 7, 30, 41, 52, 63, 74]])


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, use_cache=False).logits.float()


def loaded(folder, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def with_adapter(model, folder):
    with quiet_peft():
        return PeftModel.from_pretrained(model, folder)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
