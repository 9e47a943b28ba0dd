"""Studies: comparisons of methods."""

from zofo.studies.load import Study, read_study, study_names
from zofo.studies.plan import Plan, plan_study
from zofo.studies.runner import StudyResult, report_study, run_study

__all__ = [
    "Plan",
    "Study",
    "StudyResult",
    "plan_study",
    "read_study",
    "report_study",
    "run_study",
    "study_names",
]
