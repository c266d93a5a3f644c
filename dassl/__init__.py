"""The training framework: config, data, engine, evaluation, optim, utils.

The public names are Dassl's, so trainers written for Dassl run on this package; the code is this project's.
"""

from .mkl import enable_strict_mode

__version__ = "0.2.0"

enable_strict_mode()  # before PyTorch's first matrix product
