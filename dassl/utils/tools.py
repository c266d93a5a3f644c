"""What repositories of the field import from ``dassl.utils.tools``, Dassl's module of that name; our own code imports
from ``dassl.utils``."""
# ruff: noqa: F401

from .env import collect_env_info
from .files import check_isfile, listdir_nohidden, mkdir_if_missing, read_image, read_json, write_json
from .registry import check_availability, tolist_if_not
from .seed import set_random_seed
