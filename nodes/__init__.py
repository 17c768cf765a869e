"""The nodes. Each file is one stage: a schema and the few lines that hand CONDITIONING to vl_core and back."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .adapter import ZImageVLAdapterApply, ZImageVLAdapterFit
from .blend import ZImageVLBlend
from .condition import ZImageVLCondition
from .delta import ZImageVLDelta
from .describe import ZImageVLDescribe
from .describe_folder import ZImageVLDescribeFolder
from .encode import ZImageVLEncode
from .files import ZImageVLLoadSaved, ZImageVLSave
from .grid import ZImageVLGrid
from .inspect import ZImageVLInspect
from .layer_report import ZImageVLLayerReport
from .learn import ZImageVLLookLearn
from .loader import ZImageVLLoader
from .look import ZImageVLLookApply
from .normalize import ZImageVLNormalize
from .outliers import ZImageVLMaskOutliers
from .reference import ZImageVLReference
from .select import ZImageVLSelectTokens
from .space import ZImageVLMatchSpace
from .sweep import ZImageVLSweep

NODES: list[type[io.ComfyNode]] = [
    ZImageVLCondition,
    ZImageVLLoader,
    ZImageVLEncode,
    ZImageVLSelectTokens,
    ZImageVLMaskOutliers,
    ZImageVLNormalize,
    ZImageVLBlend,
    ZImageVLDelta,
    ZImageVLDescribe,
    ZImageVLDescribeFolder,
    ZImageVLAdapterFit,
    ZImageVLAdapterApply,
    ZImageVLLookLearn,
    ZImageVLLookApply,
    ZImageVLReference,
    ZImageVLMatchSpace,
    ZImageVLInspect,
    ZImageVLLayerReport,
    ZImageVLSweep,
    ZImageVLGrid,
    ZImageVLSave,
    ZImageVLLoadSaved,
]


class ZImageVLExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
