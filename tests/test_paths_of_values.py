"""What a row of a user's file goes through on its way to a loss, and an option to the step: few files, and those of
checks by themselves."""

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


def files_passed(holds, work):
    """The files of zofo of which a function is given, or gives back, what `holds` is true of, while something works."""
    passed = set()

    def look(frame, event, value):
        file = frame.f_code.co_filename
        if not file.startswith(SOURCE) or event not in ("call", "return"):
            return
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 2]
        given = [frame.f_locals[name] for name in names if name in frame.f_locals] if event == "call" else [value]
        if any(map(holds, given)):
            passed.add(file.removeprefix(SOURCE))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(before)
    return passed


def write_rows_of(folder):
    rows = [f"{MARK} film {n} is {('dull', 'a joy')[n % 2]},{('bad', 'good')[n % 2]}" for n in range(40)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder / "rows.csv"


def test_a_row_passes_few_files_on_its_way_to_a_loss(tmp_path, model_folder):
    """A file counts if a function of it is given a row, its text, tokens, example or batch, or gives one back."""
    config = zofo.read_config(
        model=str(model_folder),
        task={"data": str(write_rows_of(tmp_path)), "metric": "accuracy"},
        method="mezo",
        training={"steps": 1},
        output_dir=str(tmp_path / "run"),
    )
    path = files_passed(holds_a_row, lambda: zofo.train(config)) - CHECKS - BESIDE
    assert 8 < len(path) <= MOST, sorted(path)


EPSILON = 0.00123457
MOST_OF_AN_OPTION = 8
BESIDE_AN_OPTION = {  # what is done with it at its place, defaults that go by it, and the files and warnings of a run
    "displacement.py",
    "evaluators/low_rank_terms.py",
    "errors.py",
    "filesystem.py",
    "methods/mezo.py",
    "methods/zeroth_order_defaults.py",
    "trajectory/format.py",
    "training/divergence.py",
    "training/identity.py",
    "training/session.py",
    "training/together.py",
}


def holds_epsilon(value, depth=0):
    kind = type(value)
    if kind is float:
        return value == EPSILON
    if kind is str:
        return str(EPSILON) in value
    parts = value if kind in (list, tuple) else value.values() if kind is dict else ()
    return depth < 7 and any(holds_epsilon(one, depth + 1) for one in list(parts)[:60])


def test_an_option_passes_few_files_on_its_way_from_the_command_line_to_the_step(tmp_path, model_folder, run_zofo):
    """A file counts if a function of it is given epsilon, as a number or a text, or a list or dict that holds it."""
    options = {
        "model": model_folder,
        "task.data": write_rows_of(tmp_path),
        "task.metric": "accuracy",
        "method": "mezo",
        "method.estimator.epsilon": EPSILON,
        "training.steps": 1,
        "output_dir": tmp_path / "run",
    }
    path = files_passed(holds_epsilon, lambda: run_zofo("train", *(f"{key}={one}" for key, one in options.items())))
    assert "estimators.py" in path
    assert len(path - BESIDE_AN_OPTION) <= MOST_OF_AN_OPTION, sorted(path)
