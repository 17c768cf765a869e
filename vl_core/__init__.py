"""The tensor side of zimage-vl: Python and torch only, usable from a notebook, unaware of ComfyUI."""

from .adapter import AdapterSpec, PictureAdapter, PictureAdapterFit, PictureFeatures
from .artifacts import (
    ArtifactComparison,
    Artifacts,
    Fidelity,
    compare_artifacts,
    layout_similarity,
    measure_artifacts,
    measure_fidelity,
    palette_distance,
)
from .blend import alpha_curve, blend, blend_adain, blend_adain_per_dim, blend_style_dims
from .combine import Combined, combine
from .delta import DeltaInfo, baseline_picture, image_delta
from .describe import Description, describe
from .encoder import Qwen3VLEncoder
from .extract import VLExtraction
from .families import FAMILIES, Family, detect_family, stack_layers
from .grid import draw_grid
from .layers import mix_layers
from .layout import SpecialTokens, TokenLayout, TokenRole
from .metrics import Inspection, inspect
from .normalize import normalize, normalize_hybrid, normalize_per_dimension, normalize_rms, scale_embeddings
from .outliers import get_outlier_dimensions, mask_outlier_dimensions
from .recipe_files import Recipe, load_recipes
from .recipes import condition
from .resample import downsample_grid, resample_tokens
from .select import select_tokens
from .settings import Settings
from .states import VLStates, load_conditioning, save_conditioning
from .statistics import ReferenceStatistics, calibrate, calibration_prompts, find_sinks
from .sweep import Axis, Plan, make_plan, parse_axis
from .words import alpha_on_words, positions_of_words

__all__ = [
    "FAMILIES",
    "AdapterSpec",
    "ArtifactComparison",
    "Artifacts",
    "Axis",
    "Combined",
    "DeltaInfo",
    "Description",
    "Family",
    "Fidelity",
    "Inspection",
    "PictureAdapter",
    "PictureAdapterFit",
    "PictureFeatures",
    "Plan",
    "Qwen3VLEncoder",
    "Recipe",
    "ReferenceStatistics",
    "Settings",
    "SpecialTokens",
    "TokenLayout",
    "TokenRole",
    "VLExtraction",
    "VLStates",
    "alpha_curve",
    "alpha_on_words",
    "baseline_picture",
    "blend",
    "blend_adain",
    "blend_adain_per_dim",
    "blend_style_dims",
    "calibrate",
    "calibration_prompts",
    "combine",
    "compare_artifacts",
    "condition",
    "describe",
    "detect_family",
    "downsample_grid",
    "draw_grid",
    "find_sinks",
    "get_outlier_dimensions",
    "image_delta",
    "inspect",
    "layout_similarity",
    "load_conditioning",
    "load_recipes",
    "make_plan",
    "mask_outlier_dimensions",
    "measure_artifacts",
    "measure_fidelity",
    "mix_layers",
    "normalize",
    "normalize_hybrid",
    "normalize_per_dimension",
    "normalize_rms",
    "palette_distance",
    "parse_axis",
    "positions_of_words",
    "resample_tokens",
    "save_conditioning",
    "scale_embeddings",
    "select_tokens",
    "stack_layers",
]
