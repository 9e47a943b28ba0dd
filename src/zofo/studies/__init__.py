"""Comparisons of methods."""

from zofo.studies.demo import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
