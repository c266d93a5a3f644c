"""Training and evaluation."""

from typing import TYPE_CHECKING

from dassl.lazy import attach

if TYPE_CHECKING:
    from .build import (
        TRAINER_REGISTRY,
        build_trainer,
        choose_seed,
        default_cfg,
        get_trainer_nodes,
        is_decoding_set,
        read_saved_config,
        resolve_decoding,
        set_decoding,
    )
    from .loggers import LOGGERS, MetricsLogger, build_loggers
    from .run_dir import (
        check_evaluation,
        choose_evaluation_dir,
        get_inputs,
        get_provenance,
        record_run,
        run_directory,
        setup_run,
    )
    from .trainer import SimpleTrainer, TrainerBase, TrainerX, TrainerXU

__getattr__, __all__ = attach(__name__)
