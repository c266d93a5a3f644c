"""The names that third-party repositories import from Dassl's module ``dassl.utils.torchtools``."""
# ruff: noqa: F401

from .checkpoint import (
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
