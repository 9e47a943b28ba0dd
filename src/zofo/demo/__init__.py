"""The demo: what zofo is for, in a few scenes."""

from zofo.demo.demo import DemoResult, run_demo
from zofo.demo.scenes import SCENES, Contender, Scene

__all__ = ["SCENES", "Contender", "DemoResult", "Scene", "run_demo"]
