"""The tensor side of zimage-vl: Python and torch only, usable from a notebook, unaware of ComfyUI."""

from .blend import alpha_curve, blend, blend_adain, blend_adain_per_dim, blend_style_dims
from .encoder import Qwen3VLEncoder
from .extract import VLExtraction
from .layout import SpecialTokens, TokenLayout, TokenRole
from .metrics import Inspection, inspect
from .normalize import normalize, normalize_hybrid, normalize_per_dimension, normalize_rms, scale_embeddings
from .outliers import get_outlier_dimensions, mask_outlier_dimensions
from .recipes import condition
from .resample import downsample_grid, resample_tokens
from .select import select_tokens
from .states import VLStates, load_conditioning, save_conditioning
from .statistics import ReferenceStatistics, calibrate, calibration_prompts, find_sinks

__all__ = [
    "Inspection",
    "Qwen3VLEncoder",
    "ReferenceStatistics",
    "SpecialTokens",
    "TokenLayout",
    "TokenRole",
    "VLExtraction",
    "VLStates",
    "alpha_curve",
    "blend",
    "blend_adain",
    "blend_adain_per_dim",
    "blend_style_dims",
    "calibrate",
    "calibration_prompts",
    "condition",
    "downsample_grid",
    "find_sinks",
    "get_outlier_dimensions",
    "inspect",
    "load_conditioning",
    "mask_outlier_dimensions",
    "normalize",
    "normalize_hybrid",
    "normalize_per_dimension",
    "normalize_rms",
    "resample_tokens",
    "save_conditioning",
    "scale_embeddings",
    "select_tokens",
]
