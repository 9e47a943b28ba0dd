"""Estimates before a run: memory and time from the shape of a model, and a recommended configuration."""

from zofo.estimate.calibration import calibrate
from zofo.estimate.dry_run import DryRun, dry_run
from zofo.estimate.fit import Fit, fitting, parse_bytes
from zofo.estimate.machine import Machine, known_machine, machine_file
from zofo.estimate.recommend import Recommendation, recommend
from zofo.estimate.report import RowSource, RunEstimate, estimate_run
from zofo.estimate.step import StepEstimate, estimate_step

__all__ = [
    "DryRun",
    "Fit",
    "Machine",
    "Recommendation",
    "RowSource",
    "RunEstimate",
    "StepEstimate",
    "calibrate",
    "dry_run",
    "estimate_run",
    "estimate_step",
    "fitting",
    "known_machine",
    "machine_file",
    "parse_bytes",
    "recommend",
]
