"""The tiny CLIP of this repository, pretrained on rendered digits by ``python -m vlm.tiny.pretrain``."""
