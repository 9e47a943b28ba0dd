"""What an answer is worth in the demo, which copies this file beside its runs: change it there and train by it."""

from typing import Any


def careful(example: Any, prediction: int) -> float:
    """0 for a right answer, -5 for a bad review that is taken for a good one, -1 for the other mistake."""
    if prediction in example.golds:
        return 0.0
    bad, _good = range(len(example.candidates))
    return -5.0 if bad in example.golds else -1.0
