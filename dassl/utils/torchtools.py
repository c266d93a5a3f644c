"""What repositories of the field import from ``dassl.utils.torchtools``, Dassl's module of that name."""
# ruff: noqa: F401

from .checkpoint import (
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
