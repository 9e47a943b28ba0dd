"""Benchmarks of steps: time and memory of each way to make one, side by side; and the demo."""

from zofo.bench.demo import DemoResult, run_demo
from zofo.bench.step import StepCost, StepReport, bench_step
from zofo.bench.step_variants import StepOptions

__all__ = [
    "DemoResult",
    "StepCost",
    "StepOptions",
    "StepReport",
    "bench_step",
    "run_demo",
]
