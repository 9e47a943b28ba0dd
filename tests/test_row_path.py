"""What a row of a user's file goes through on its way to a loss: few files, and those of checks by themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import zofo

SOURCE = f"{Path(zofo.__file__).parent}/"
MARK = "zebra"  # a word of every row
FORMS = {"Row", "Example", "TokenizedChoices", "Batch", "_Row", "_Record", "Asked", "Spelt", "Coded"}
MOST = 12  # files, without those of checks and those beside the way
CHECKS = {
    "tasks/readers/formats.py",
    "tasks/row_checks.py",
    "tasks/tokenization_checks.py",
    "tasks/control_tokens.py",
    "methods/base.py",
    "evaluators/model_check.py",
    "evaluators/forward_check.py",
}
BESIDE = {  # hashes, scores after training, and the files of a run
    "training/identity.py",
    "training/evaluation.py",
    "training/train.py",
    "training/predictor.py",
    "training/run_logs.py",
    "tasks/metrics.py",
    "filesystem.py",
}


def holds_a_row(value, depth=0):
    kind = type(value)
    if kind in (str, bytes):
        return (MARK if kind is str else MARK.encode()) in value
    if kind.__name__ in FORMS and kind.__module__.startswith("zofo."):
        return True
    parts = value if kind in (list, tuple) else value.values() if kind is dict else ()
    return depth < 4 and any(holds_a_row(one, depth + 1) for one in list(parts)[:40])


def test_a_row_passes_few_files_on_its_way_to_a_loss(tmp_path, model_folder):
    """A file counts if a function of it is given a row, its text, tokens, example or batch, or gives one back."""
    rows = [f"{MARK} film {n} is {('dull', 'a joy')[n % 2]},{('bad', 'good')[n % 2]}" for n in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    passed = set()

    def look(frame, event, value):
        file = frame.f_code.co_filename
        if not file.startswith(SOURCE) or event not in ("call", "return"):
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 2]
        given = [frame.f_locals[name] for name in names if name in frame.f_locals] if event == "call" else [value]
        if any(map(holds_a_row, given)):
            passed.add(file.removeprefix(SOURCE))

    config = zofo.read_config(
        model=str(model_folder),
        task={"data": str(tmp_path / "rows.csv"), "metric": "accuracy"},
        method="mezo",
        training={"steps": 1},
        output_dir=str(tmp_path / "run"),
    )
    before = sys.getprofile()
    sys.setprofile(look)
    try:
        zofo.train(config)
    finally:
        sys.setprofile(before)
    path = passed - CHECKS - BESIDE
    assert 8 < len(path) <= MOST, sorted(path)
