"""The only place that touches ComfyUI itself."""
