"""The paper's correction beside any loop: a module that takes a state and what somebody else's solver makes of it.

It works in the coordinates of that loop, where the state is x = α x* + σ ε, the candidate T(x) and the residual u = x − T(x):

    x' = (1−γ) x + γ T(x),      γ = max(γ*, γ_min),      γ* = [(1 − 1/α) E⟨u,x⟩ + (σ²/α) E[∇·u]] / E‖u‖²

The formulas are those of `corrections`; here is only what lets them see a step whose solver they do not know.
"""

from steindiff.standalone.given import Scalar, StepFunction
from steindiff.standalone.module import SteinDiff

__all__ = ["Scalar", "SteinDiff", "StepFunction"]
