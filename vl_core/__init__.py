"""The tensor side of zimage-vl: Python and torch only, usable from a notebook, unaware of ComfyUI."""

from .adapters.features import PictureFeatures
from .adapters.fit import PictureAdapterFit
from .adapters.picture_adapter import PictureAdapter
from .adapters.spec import AdapterSpec
from .encoder.qwen3vl import Qwen3VLEncoder
from .encoder.writing import Description, describe, describe_each
from .looks.apply import apply_look
from .looks.learn import learn_look
from .looks.look import Look
from .looks.start import Words
from .pictures import baseline_picture
from .reports.artifacts import ArtifactComparison, Artifacts, compare_artifacts, measure_artifacts
from .reports.fidelity import Fidelity, layout_similarity, measure_fidelity, palette_distance
from .reports.grid import draw_grid
from .reports.inspection import Inspection, inspect
from .stages.alpha import alpha_curve, alpha_on_words, positions_of_words
from .stages.blend import blend, blend_adain, blend_adain_per_dim, blend_style_dims
from .stages.combine import Combined, combine
from .stages.delta import DeltaInfo, image_delta
from .stages.extract import VLExtraction
from .stages.mix_layers import mix_layers
from .stages.normalize import normalize, normalize_hybrid, normalize_per_dimension, normalize_rms, scale_embeddings
from .stages.outliers import get_outlier_dimensions, mask_outlier_dimensions
from .stages.resample import downsample_grid, resample_tokens
from .stages.select import select_tokens
from .states.families import FAMILIES, Family, detect_family
from .states.layout import SpecialTokens, TokenLayout, TokenRole
from .states.sinks import find_sinks
from .states.stacks import stack_layers
from .states.statistics import ReferenceStatistics, calibrate, calibration_prompts
from .states.vl_states import VLStates, load_conditioning, save_conditioning
from .steering.axes import Axis, parse_axis
from .steering.condition import condition
from .steering.recipes import Recipe, load_recipes
from .steering.settings import Settings
from .steering.sweep import Plan, make_plan

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
    "Look",
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
    "Words",
    "alpha_curve",
    "alpha_on_words",
    "apply_look",
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
    "describe_each",
    "detect_family",
    "downsample_grid",
    "draw_grid",
    "find_sinks",
    "get_outlier_dimensions",
    "image_delta",
    "inspect",
    "layout_similarity",
    "learn_look",
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
