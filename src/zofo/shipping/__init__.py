"""What a run leaves, rebuilt, compared and shipped: replays, exports and patches."""

from zofo.shipping.applying import Applied, apply_patch
from zofo.shipping.comparing import Comparison, Difference, compare_runs
from zofo.shipping.exporting import Exported, export_run, the_one_form
from zofo.shipping.patch import Patch
from zofo.shipping.pushing import push
from zofo.shipping.replaying import Replayed, replay_run

__all__ = [
    "Applied",
    "Comparison",
    "Difference",
    "Exported",
    "Patch",
    "Replayed",
    "apply_patch",
    "compare_runs",
    "export_run",
    "push",
    "replay_run",
    "the_one_form",
]
