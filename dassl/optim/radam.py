"""PyTorch's RAdam, which third-party repositories import from this module of Dassl."""

from torch.optim import RAdam  # noqa: F401
