"""Where repositories of the field import RAdam from; PyTorch has it."""

from torch.optim import RAdam  # noqa: F401
