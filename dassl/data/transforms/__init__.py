"""Transforms from PIL images to tensors."""

from .transforms import INTERPOLATION_MODES, Pipeline, build_plain_transform, build_transform, get_interpolation
