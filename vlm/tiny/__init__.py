"""A tiny CLIP that comes with the repository: trained on rendered digits by ``python -m vlm.tiny.pretrain``."""
