"""What the server of :mod:`tests.stress.children` imports before it is asked for the first process."""

import sklearn.datasets
import sklearn.metrics  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import datasets  # noqa: F401
import tools.results_table
import tools.sweep  # noqa: F401
import train  # noqa: F401
import trainers  # noqa: F401
import vlm.images.encoder
from tests.stress import full_disk, kills, several  # noqa: F401

vlm.images.encoder._has_openvino = lambda: False  # to compile the encoder would take longer than the runs
