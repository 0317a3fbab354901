"""`steindiff demo`: what the correction does, on two real models, in a few minutes on two CPU cores."""

from steindiff.demo.run import run_demo

__all__ = ["run_demo"]
