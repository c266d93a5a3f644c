"""The configuration: a yacs tree with Dassl's keys, YAML files and ``KEY VALUE`` overrides merged into it."""

from .defaults import get_cfg_default
from .merge import clean_cfg, merge_file, merge_flag, merge_options, to_dict
from .saved import claim_folder, seed_of_run

__all__ = [
    "claim_folder",
    "clean_cfg",
    "get_cfg_default",
    "merge_file",
    "merge_flag",
    "merge_options",
    "seed_of_run",
    "to_dict",
]
