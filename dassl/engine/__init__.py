"""Training and evaluation."""

from typing import TYPE_CHECKING

from dassl.lazy import attach

if TYPE_CHECKING:
    from .build import TRAINER_REGISTRY, build_trainer
    from .trainer import SimpleTrainer, TrainerBase, TrainerX, TrainerXU

__getattr__, __all__ = attach(
    __name__, {"build": "TRAINER_REGISTRY build_trainer", "trainer": "SimpleTrainer TrainerBase TrainerX TrainerXU"}
)
