"""Comparisons of methods."""

from zofo.studies.demo import DemoResult, run_demo
from zofo.studies.plan import Plan, plan_study
from zofo.studies.reading import Study, read_study, study_names
from zofo.studies.runner import StudyResult, report_study, run_study
from zofo.studies.step_bench import StepCost, StepReport, bench_step
from zofo.studies.step_ways import StepOptions

__all__ = [
    "DemoResult",
    "Plan",
    "StepCost",
    "StepOptions",
    "StepReport",
    "Study",
    "StudyResult",
    "bench_step",
    "plan_study",
    "read_study",
    "report_study",
    "run_demo",
    "run_study",
    "study_names",
]
