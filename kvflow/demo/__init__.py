"""``kvflow demo``: a ten-agent workflow on real SGLang, with KVFlow and without, side by side."""

from kvflow.demo.arms import ARMS, Arm
from kvflow.demo.report import render, to_json
from kvflow.demo.runner import DemoOptions, run_demo
from kvflow.demo.summary import DemoResult

__all__ = ["ARMS", "Arm", "DemoOptions", "DemoResult", "render", "run_demo", "to_json"]
