"""The demo: what zofo is for, in a few scenes."""

from zofo.demo.demo import DemoResult, run_demo
from zofo.demo.scenes import SCENES, DemoRun, Scene

__all__ = ["SCENES", "DemoRun", "DemoResult", "Scene", "run_demo"]
