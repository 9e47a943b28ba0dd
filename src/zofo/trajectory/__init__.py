"""The log of updates: its format, and its replay."""

from zofo.trajectory.format import Trajectory, TrajectoryWriter
from zofo.trajectory.replay import replay

__all__ = [
    "Trajectory",
    "TrajectoryWriter",
    "replay",
]
