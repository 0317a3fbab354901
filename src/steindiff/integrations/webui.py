"""Samplers for the web UIs of AUTOMATIC1111 and Forge. It needs to run inside one of them, whose package is `modules`.

An extension is a folder of `extensions/` whose files in `scripts/` are run at the start; one that says

    from steindiff.integrations import webui

    webui.register()

puts the samplers into the list.
"""

from functools import partial
from typing import Any

from modules import sd_samplers, sd_samplers_common, sd_samplers_kdiffusion

from steindiff.integrations.kdiffusion import MENU, named, sample_steindiff


def is_flow(model: Any) -> bool:
    """Whether the levels of a checkpoint are a flow's times: SD3 in either, and whatever Forge says has prediction "const"."""
    unet = getattr(getattr(model, "forge_objects", None), "unet", None)
    predictor = getattr(getattr(unet, "model", None), "predictor", None)
    kind = getattr(predictor, "prediction_type", None)
    return kind == "const" if kind is not None else bool(getattr(model, "is_sd3", False))


def constructed(name: str, model: Any) -> Any:
    """The web UI's own sampler around one of ours."""
    function = named(f"sample_{name}", sample_steindiff, flow=is_flow(model), **MENU[name])
    return sd_samplers_kdiffusion.KDiffusionSampler(function, model)


def register() -> list[str]:
    """Put the samplers into the list, each once; returns their labels."""
    labels = []
    for name in MENU:
        label = name.replace("steindiff", "SteinDiff").replace("_", " ", 1)
        labels.append(label)
        if label in sd_samplers.all_samplers_map:
            continue
        data = sd_samplers_common.SamplerData(label, partial(constructed, name), [name], {"scheduler": "karras"})
        sd_samplers.all_samplers.append(data)
        sd_samplers.all_samplers_map[label] = data
    sd_samplers.set_samplers()
    return labels
