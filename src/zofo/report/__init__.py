"""Reports of runs side by side: their scores, where they differ, and whether that is more than noise."""

from zofo.report.comparison import RunComparison, compare_runs
from zofo.report.page import write_report
from zofo.report.runs import ReportedRun, read_runs
from zofo.report.watch import watch_run

__all__ = ["RunComparison", "ReportedRun", "compare_runs", "read_runs", "watch_run", "write_report"]
