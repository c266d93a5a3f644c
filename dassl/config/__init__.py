"""The configuration: a yacs tree with Dassl's keys, YAML files and ``KEY VALUE`` overrides merged into it."""

from .defaults import fill_defaults, get_cfg_default
from .merge import clean_cfg, merge_file, merge_flag, merge_options, to_dict
