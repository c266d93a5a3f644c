"""Training and evaluation."""

from typing import TYPE_CHECKING

from dassl.lazy import attach

if TYPE_CHECKING:
    from .build import TRAINER_REGISTRY, build_trainer, default_cfg, nodes_of
    from .run_dir import check_evaluation, choose_seed, describe, inputs_of, recorded, run_directory, setup_environment
    from .trainer import SimpleTrainer, TrainerBase, TrainerX, TrainerXU

__getattr__, __all__ = attach(__name__)
