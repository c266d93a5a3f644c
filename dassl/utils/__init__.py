"""Helpers for all packages: errors, files, registries, checkpoints, logs, seeds. Dassl's helpers keep Dassl's names."""

from typing import TYPE_CHECKING

from dassl.lazy import attach

from .errors import (
    PIP_MIRROR_HINT,
    NonFiniteError,
    UnreadableImageError,
    UserError,
    command_line,
    error_reason,
    import_optional,
    interrupted_error,
    suggest_name,
    write_error,
)
from .files import (
    atomic_write,
    check_isfile,
    check_replaceable,
    escape_formula,
    file_digest,
    is_utf8,
    join_below,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    read_text,
    write_json,
)
from .images import Decoding, read_image
from .paths import relpath
from .registry import Registry, check_at_least, check_availability, tolist_if_not

if TYPE_CHECKING:
    from .checkpoint import (
        count_num_param,
        load_checkpoint,
        load_pretrained_weights,
        resume_from_checkpoint,
        save_checkpoint,
    )
    from .env import collect_env_info, get_package_versions, trim_malloc, tune_malloc
    from .logger import setup_logger
    from .meters import AverageMeter, MetricMeter
    from .seed import derive_seed, get_rng_states, set_random_seed, set_rng_states, temporary_seed

__getattr__, __all__ = attach(__name__)
