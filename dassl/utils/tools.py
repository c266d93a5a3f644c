"""What repositories of the field import from ``dassl.utils.tools``, Dassl's module of that name; our own code imports
from ``dassl.utils``."""

from .env import collect_env_info
from .files import check_isfile, listdir_nohidden, mkdir_if_missing, read_image, read_json, write_json
from .registry import check_availability, tolist_if_not
from .seed import set_random_seed

__all__ = [
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]
