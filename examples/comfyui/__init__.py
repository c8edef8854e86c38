"""Copy or link this folder into ComfyUI's custom_nodes/ as `uniwetok` (docs/comfyui.md)."""

from uniwetok_hf.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS


__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
