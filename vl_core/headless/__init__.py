"""The whole chain without ComfyUI, on diffusers' ZImagePipeline: ``python -m vl_core``."""
