"""Headwork: a workbench for mechanistic interpretability on small networks."""

__version__ = "0.1.0"
