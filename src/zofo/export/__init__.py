"""Replays, comparisons, exports and patches of runs."""

from zofo.export.apply import PatchResult, apply_patch
from zofo.export.diff import Difference, RunDiff, compare_runs
from zofo.export.export import ExportResult, export_run, parse_export_target, push
from zofo.export.patch import Patch
from zofo.export.verify import ReplayReport, replay_run

__all__ = [
    "PatchResult",
    "RunDiff",
    "Difference",
    "ExportResult",
    "Patch",
    "ReplayReport",
    "apply_patch",
    "compare_runs",
    "export_run",
    "push",
    "replay_run",
    "parse_export_target",
]
