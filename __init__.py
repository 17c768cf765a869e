"""zimage-vl: reference images for Z-Image, without training."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """What ComfyUI calls to get the nodes; they are imported only now, for they need ComfyUI."""
    from .nodes import ZImageVLExtension

    return ZImageVLExtension()
