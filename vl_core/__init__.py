"""The tensor side of zimage-vl: Python and torch only, usable from a notebook, unaware of ComfyUI."""

from .layout import SpecialTokens, TokenLayout, TokenRole
from .states import VLStates, load_conditioning, save_conditioning
from .statistics import ReferenceStatistics, calibrate, calibration_prompts, find_sinks

__all__ = [
    "ReferenceStatistics",
    "SpecialTokens",
    "TokenLayout",
    "TokenRole",
    "VLStates",
    "calibrate",
    "calibration_prompts",
    "find_sinks",
    "load_conditioning",
    "save_conditioning",
]
