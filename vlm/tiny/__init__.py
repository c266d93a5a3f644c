"""A tiny CLIP that comes with the repository: trained on rendered digits by ``python -m vlm.tiny.pretrain``."""

from .weights import TINY, load_tiny

__all__ = ["TINY", "load_tiny"]
