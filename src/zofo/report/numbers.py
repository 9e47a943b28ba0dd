"""Numbers as a report writes them; a dash where one is not known."""

from __future__ import annotations


def as_score(value: float | None, metric: str) -> str:
    """A share in percent, with one decimal; a loss with four digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if metric == "loss" else f"{100 * value:.1f}"


def as_number(value: float | None) -> str:
    """Three digits, or all of a whole number from a thousand on."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
