"""The training framework: config, data, engine, evaluation, optim, utils.

The public names are Dassl's, so trainers written for Dassl run on this package; the code is this project's.
"""

__version__ = "0.1.0"
