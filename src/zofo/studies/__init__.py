"""Comparisons of methods."""

from zofo.studies.demo import DemoResult, run_demo
from zofo.studies.step_bench import StepCost, StepReport, bench_step
from zofo.studies.step_ways import StepOptions

__all__ = ["DemoResult", "StepCost", "StepOptions", "StepReport", "bench_step", "run_demo"]
