"""What repositories of the field import from ``dassl.utils.torchtools``, Dassl's module of that name; our own code
imports from ``dassl.utils``."""

from .checkpoint import (
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)

__all__ = [
    "count_num_param",
    "load_checkpoint",
    "load_pretrained_weights",
    "resume_from_checkpoint",
    "save_checkpoint",
]
