"""Nodes for ComfyUI: a sampler with solver, correction and table, and the calibration of a table. It needs ComfyUI.

ComfyUI loads a folder of `custom_nodes` whose `__init__.py` has `NODE_CLASS_MAPPINGS`: a file of one import of this package
does, and so does a link to this folder. Loading it also puts the ready-made samplers into the ordinary list.
"""

from steindiff.integrations.comfyui.nodes import SteindiffCalibrate, SteindiffSampler
from steindiff.integrations.comfyui.sampling import register

register()

NODE_CLASS_MAPPINGS = {"SteindiffSampler": SteindiffSampler, "SteindiffCalibrate": SteindiffCalibrate}
NODE_DISPLAY_NAME_MAPPINGS = {"SteindiffSampler": "SteinDiff sampler", "SteindiffCalibrate": "SteinDiff: calibrate a table"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
