"""What a run keeps of the examples that it was scored on."""

import pytest

from test_treatment import configured  # noqa: F401  # a fixture
from zofo.errors import RunError
from zofo.tasks import METRICS
from zofo.training import train
from zofo.training.run_logs import read_answers


def test_a_run_keeps_what_each_of_its_models_answered(configured):  # noqa: F811
    method = {"name": "bilevel", "inner_steps": 1, "lr": 1e-2}
    run = train(configured("run", method, steps=2, treatment_steps=None, eval_on_test=True))
    found = read_answers(run.path / "answers.jsonl")
    for split, scores in (("validation", run.summary["variants"]), ("test", run.summary["test"])):
        own = [one for one in found if one.split == split]
        for variant, score in scores.items():
            said = [one.predicted[variant] for one in own]
            assert METRICS["accuracy"].score([one.example for one in own], said) == score["accuracy"]
            losses = [one.losses[variant] for one in own]
            assert sum(losses) / len(losses) == pytest.approx(score["loss"], rel=1e-5)
        assert all(one.where and one.text and one.right in ("terrible", "great") for one in own)
    assert "answers.jsonl" not in run.summary["parts"]  # no part of the model
    (run.path / "answers.jsonl").write_text('{"split": 3}\n', encoding="utf-8")
    with pytest.raises(RunError, match="line 1, is not as a run writes it"):
        read_answers(run.path / "answers.jsonl")
    assert read_answers(run.path / "no-such-file.jsonl") == []
