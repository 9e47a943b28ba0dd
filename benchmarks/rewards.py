"""Training by a reward beside other ways, at equal seconds: SmolLM2-135M-Instruct, four small problems, three seeds.

    python benchmarks/rewards.py run                    all of it; stopped, it goes on where it was
    python benchmarks/rewards.py run --cell brevity/es  what begins so; --seconds 120 by default
    python benchmarks/rewards.py show

It takes about an hour a problem on one core: `--seconds` of training for each run and half of them for each pilot,
one process each, and what is measured around them. Run it on an idle machine. `brevity` and `constraints` come first.

Problems and their rewards: `reward_problems.py`. Ways:

- `es`, `es-subspace`: 16 members on 2 rows a step (`f1`: on 16), of the full model or its subspace adapter.
- `select`: the best of all members, 16 a step on 4 rows, with a gate of 16.
- `mezo`: two points on 16 rows a step.
- `grpo`: TRL's GRPOTrainer as its page "LoRA Without Regret" advises: LoRA of rank 1, alpha 32, on all linear layers,
  groups of 8, no KL; its defaults besides, but for a constant rate and no bfloat16, which this processor lacks. A step
  has 16 completions. F1 is no reward of one completion: `f1` rewards the hits, those of bad reviews three times.
- `fo-lora`: cross-entropy of the right answers by gradients, LoRA, 8 rows; where there are answers.

Seconds are those of the processor, which with one thread are those of the clock on an idle machine (`wall`). They
begin when a loaded model is handed to a method or trainer, so that calibration and checks count, and end with the step
that reaches the limit; measuring is outside of them. Each way gets three pilots a problem for its one
number (sigma, with alpha as half of it; of `mezo`, `grpo`, `fo-lora` the rate), with half of the seconds and seed
100, which is no final seed, scored on rows of `tune`. What was measured is on rows of `test`, decoded greedily.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from reward_problems import PROBLEMS, REVIEW, SPLITS, Row
from reward_tables import PILOT_SEED, ROWS, SIGMAS, best_number, cells, known, show

MODEL = "smollm2-135m"


def method_of(way: str, number: float, f1: bool) -> dict[str, Any]:
    """A way as zofo's configuration has it."""
    if way == "fo-lora":
        return {"name": "first-order", "adapter": {"name": "lora"}, "batch_size": 8, "lr": number}
    if way == "mezo":
        return {"name": "mezo", "batch_size": 16, "lr": number, "estimator": {"epsilon": 1e-2}}
    shape: dict[str, Any] = {"population": 16, "estimator": {"epsilon": number}}
    if way == "select":
        return {"name": "select", "batch_size": 16 if f1 else 4, "gate_examples": 48 if f1 else 16, **shape}
    adapter = {"adapter": {"name": "subspace"}} if way == "es-subspace" else {}
    return {"name": "es", "batch_size": 16 if f1 else 2, **shape, **adapter}


def config_of(name: str, method: dict[str, Any], seed: int, folder: Path) -> Any:
    """The configuration of a run, whose rows are written to `folder`."""
    from zofo.training import read_config

    problem, data = PROBLEMS[name], folder / "rows"
    data.mkdir()
    names = dict(zip(SPLITS, ("train", "validation", "test"), strict=True))
    for split, file in names.items():
        lines = "".join(json.dumps(row) + "\n" for row in problem.rows(split))
        (data / f"{file}.jsonl").write_text(lines, encoding="utf-8")
    own: dict[str, Any] = {"max_new_tokens": problem.new_tokens}
    if name == "f1":
        own = {"label": "label", "verbalizers": {0: " bad", 1: " good"}, "template": "{{ text }}" + REVIEW}
    task = {"data": str(data), "reward_columns": ["checks"], **own}
    return read_config(model=MODEL, task=task, method=method, training={"seed": seed, "eval_batch_size": 32})


def train_zofo(config: Any, prepared: Any, reward: Any, seconds: float) -> tuple[Any, dict[str, Any]]:
    """Steps of a method until the seconds are over; the model, and what it took."""
    from zofo.methods import METHODS
    from zofo.training.data_module import training_context

    start = time.process_time()
    context = training_context(config, prepared, reward)
    method = METHODS[config.method.name](config.method, context)
    method.check()
    steps, slowest, selects = 0, 0.0, config.method.name == "select"
    while not steps or (method.planned_steps is None if selects else time.process_time() - start < seconds):
        began = time.process_time()
        if selects and seconds - (began - start) < 2.5 * slowest:  # the last step also asks the gate, about as much
            method.planned_steps = steps + 1
        method.step(steps)
        steps, slowest = steps + 1, max(slowest, time.process_time() - began)
    with method.using(method.variants[0]):
        took = {"seconds": time.process_time() - start, "steps": steps, **method.counts.as_dict(), **method.summary()}
    return method.model, took


def train_grpo(prepared: Any, name: str, rate: float, seed: int, seconds: float, folder: Path) -> tuple[Any, Any]:
    """TRL's GRPO until the seconds are over."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    from zofo.evaluators import Counts
    from zofo.evaluators.counts import counting_forwards

    problem, loaded = PROBLEMS[name], prepared.loaded
    reward = problem.grpo or problem.reward
    asked = [asked_of(row) for row in problem.rows("train")]
    arguments = GRPOConfig(
        output_dir=str(folder / "grpo"),
        learning_rate=rate,
        lr_scheduler_type="constant",
        max_steps=100_000,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_generations=8,
        max_completion_length=problem.new_tokens,
        seed=seed,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )

    def rewarded(prompts: Any, completions: Any, checks: Any, **_: Any) -> list[float]:
        return reward(prompts=prompts, completions=completions, checks=checks)

    start, counts = time.process_time(), Counts()

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = time.process_time() - start >= seconds

    trainer = GRPOTrainer(
        model=loaded.model,
        reward_funcs=rewarded,
        args=arguments,
        train_dataset=Dataset.from_list(asked),
        processing_class=loaded.tokenizer,
        peft_config=LoraConfig(r=1, lora_alpha=32, target_modules="all-linear"),
        callbacks=[Clock()],
    )
    with counting_forwards(loaded.model, counts):
        trainer.train()
    took = time.process_time() - start
    steps = trainer.state.global_step
    trainer.model.eval()
    return trainer.model, {"seconds": took, "steps": steps, "queries": 16 * steps, "forwards": counts.forwards}


def asked_of(row: Row) -> dict[str, Any]:
    """A row as TRL takes it: what is asked, and what the reward reads."""
    turns = row.get("messages")
    return {"prompt": row["text"] + REVIEW if turns is None else turns[:-1], "checks": row["checks"]}


def answered(name: str, prepared: Any, model: Any, split: str, most: int) -> dict[str, Any]:
    """Rewards, answers and lengths on a split, and what everyday sentences have become that nobody trains."""
    import dataclasses

    import torch

    from zofo.evaluators import Counts
    from zofo.objectives import as_rewards
    from zofo.tasks import Example, encode
    from zofo.training.before_after import EVERYDAY

    problem, encoded, scorer = PROBLEMS[name], prepared.encoded[split][:most], prepared.scorer
    examples = [one.example for one in encoded]
    everyday = [Example(text, (f" {right}", f" {wrong}"), (0,)) for text, right, wrong in EVERYDAY]
    with torch.no_grad():
        if prepared.task.kind == "generation":
            said: list[Any] = scorer.generated(model, encoded, Counts())
            texts, right = said, [""] * len(said)
        else:
            said = scorer.candidates(model, encoded, Counts()).argmax(dim=1).tolist()
            texts = [one.candidates[place].strip() for one, place in zip(examples, said, strict=True)]
            right = [one.candidates[one.golds[0]].strip() for one in examples]
        plain = dataclasses.replace(scorer, scoring="mean")
        table = plain.candidates(model, list(encode(prepared.loaded.tokenizer, everyday)), Counts())
    rewards = as_rewards(problem.reward)(examples, said)
    rows = [(round(reward, 4), *pair) for reward, *pair in zip(rewards, texts, right, strict=True)]
    first = torch.zeros(len(table), dtype=torch.long)
    return {
        "rows": rows,
        "score": problem.score(rows),
        "words": statistics.mean(len(text.split()) for text in texts),
        "everyday_accuracy": (table.argmax(dim=1) == 0).double().mean().item(),
        "everyday_loss": torch.nn.functional.cross_entropy(table, first).item(),
    }


def distance(model: Any) -> float:
    """|theta - theta_0| / |theta_0|, of weights with what their adapters add."""
    import torch
    from safetensors.torch import load_file

    from zofo.embedded import EMBEDDED_MODELS

    before = load_file(EMBEDDED_MODELS[MODEL]() / "model.safetensors")
    weights = {re.sub(r"^base_model\.model\.|\.base_layer", "", key): one for key, one in model.named_parameters()}
    moved = {key: weights[key].detach() - one for key, one in before.items() if key in weights}
    if len(moved) != len(before):
        raise SystemExit(f"{len(before) - len(moved)} tensors of the model have another name than in its file")
    for key, layer in model.named_modules():
        for adapter in getattr(layer, "active_adapters", ()) if hasattr(layer, "get_delta_weight") else ():
            own = re.sub(r"^base_model\.model\.", "", key) + ".weight"
            moved[own] = moved[own] + layer.get_delta_weight(adapter).detach()
    whole = math.fsum(float(one.double().square().sum()) for one in before.values())
    assert all(isinstance(one, torch.Tensor) for one in moved.values())
    return math.sqrt(math.fsum(float(one.double().square().sum()) for one in moved.values()) / whole)


def measure(cell: str, number: float | None, seconds: float, most: int) -> dict[str, Any]:
    """One run, in this process."""
    import torch

    from zofo.training.data_module import prepare_run
    from zofo.training.peak_memory import PeakMemory

    torch.set_num_threads(1)
    name, way, *rest = cell.split("/")
    pilot = bool(rest) and rest[0].startswith("pilot")
    seed = PILOT_SEED if pilot or not rest else int(rest[0])
    with tempfile.TemporaryDirectory(prefix="zofo-rewards-") as scratch:
        folder = Path(scratch)
        known_way = "es" if way in ("base", "grpo") else way  # whose own parts are then not made
        config = config_of(name, method_of(known_way, number or SIGMAS[0], name == "f1"), seed, folder)
        prepared = prepare_run(config)
        if way == "base":
            return {"cell": cell, **answered(name, prepared, prepared.loaded.model, "test", most)}
        memory = PeakMemory(prepared.loaded.device)
        loaded, began = memory.now(), time.perf_counter()
        with memory.watching():
            if way == "grpo":
                model, took = train_grpo(prepared, name, number or 0.0, seed, seconds, folder)
            else:
                reward = None if way == "fo-lora" else PROBLEMS[name].reward
                model, took = train_zofo(config, prepared, reward, seconds)
        took["wall"] = time.perf_counter() - began
        found = answered(name, prepared, model, "validation" if pilot else "test", most)
    if pilot:
        found = {"score": found["score"], "tuned_on": f"rows of tune, seed {seed}, which is no final seed"}
    said = {"cell": cell, "number": number, "limit": seconds, "seed": seed, **took, **found}
    return {**said, "loaded_bytes": loaded, "peak_bytes": memory.bytes, "distance": distance(model)}


def run(only: str, seconds: float) -> None:
    """Each cell that is not known yet, in a process of its own, a line each. One that fails is said and passed over."""
    single, failed = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, []
    for cell in cells():
        if cell in known() or not cell.startswith(only):
            continue
        last = cell.split("/")[-1]
        pilot = last.startswith("pilot-")
        number = None if last == "base" else float(last[6:]) if pilot else best_number(cell, known())
        if number is None and last != "base":
            failed.append(f"{cell}: its pilots come first")
            continue
        print(cell, "" if number is None else f"{number:g}", flush=True)
        words = ["one", "--cell", cell, "--seconds", str(seconds / 2 if pilot else seconds)]
        command = [sys.executable, __file__, *words, *(["--number", str(number)] if number is not None else [])]
        done = subprocess.run(command, capture_output=True, text=True, env=single)
        if done.returncode:
            failed.append(f"{cell}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
            print(failed[-1], file=sys.stderr, flush=True)
            continue
        ROWS.parent.mkdir(exist_ok=True)
        with ROWS.open("a", encoding="utf-8") as stream:
            stream.write(done.stdout.splitlines()[-1] + "\n")
    if failed:
        raise SystemExit("not measured:\n" + "\n".join(one.splitlines()[0] for one in failed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show", "one"), help="`one` is a single run, whose line is printed")
    parser.add_argument("--cell", default="", help="the beginning of the cells to run, as in brevity/es")
    parser.add_argument("--seconds", type=float, default=120, help="of training, each run; pilots take half of it")
    parser.add_argument("--number", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=1000, help="of one run: the most held-out rows, for a try")
    given = parser.parse_args()
    if given.what == "show":
        show()
    elif given.what == "one":
        print(json.dumps(measure(given.cell, given.number, given.seconds, given.rows)))
    elif not any(cell.startswith(given.cell) for cell in cells()):
        parser.error(f"no cell begins with {given.cell!r}: they are named {', '.join(cells()[:5])} ...")
    else:
        run(given.cell, given.seconds)


if __name__ == "__main__":
    main()
