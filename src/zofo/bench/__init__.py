"""Benchmarks of steps: time and memory of each way to make one, side by side."""

from zofo.bench.memory import MemoryOptions, MemoryRow, bench_memory, frontier_table
from zofo.bench.step import StepCost, StepReport, bench_step
from zofo.bench.step_variants import StepOptions

__all__ = [
    "MemoryOptions",
    "MemoryRow",
    "StepCost",
    "StepOptions",
    "StepReport",
    "bench_memory",
    "bench_step",
    "frontier_table",
]
