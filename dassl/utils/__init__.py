"""Small services. Each name is imported from its module on first use, so tools that read logs never import torch."""

from importlib import import_module

_MODULE_OF = {
    name: module
    for module, names in {
        "checkpoint": "load_checkpoint save_checkpoint resume_from_checkpoint load_pretrained_weights count_num_param",
        "downloads": "download",
        "env": "collect_env_info keep_memory package_versions release_memory",
        "errors": "BadImage NotANumber UserError cannot_write command_line nearest reason_of stopped",
        "files": "atomic_write check_isfile is_utf8 listdir_nohidden mkdir_if_missing read_image read_json write_json",
        "locks": "InUse alone_in",
        "logger": "setup_logger log_to",
        "meters": "AverageMeter MetricMeter",
        "registry": "Registry check_at_least check_availability tolist_if_not",
        "seed": "derive_seed random_states restore_random_states seeded set_random_seed",
    }.items()
    for name in names.split()
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
