"""The names that third-party repositories import from Dassl's module ``dassl.utils.tools``."""
# ruff: noqa: F401

from .env import collect_env_info
from .files import check_isfile, listdir_nohidden, mkdir_if_missing, read_json, write_json
from .images import read_image
from .registry import check_availability, tolist_if_not
from .seed import set_random_seed
