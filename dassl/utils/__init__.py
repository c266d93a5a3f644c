"""Small services, under Dassl's names as far as Dassl has them."""

from typing import TYPE_CHECKING

from dassl.lazy import attach

from .errors import BadImage, NotANumber, UserError, cannot_write, command_line, nearest, reason_of, stopped
from .files import (
    atomic_write,
    check_isfile,
    file_digest,
    is_utf8,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    write_json,
)
from .registry import Registry, check_at_least, check_availability, tolist_if_not

if TYPE_CHECKING:
    from .checkpoint import (
        count_num_param,
        load_checkpoint,
        load_pretrained_weights,
        resume_from_checkpoint,
        save_checkpoint,
    )
    from .env import collect_env_info, keep_memory, package_versions, release_memory
    from .logger import setup_logger
    from .meters import AverageMeter, MetricMeter
    from .seed import derive_seed, random_states, restore_random_states, seeded, set_random_seed

__getattr__, __all__ = attach(__name__)
