"""One file, one data set. Every module here is imported, so a new file registers itself."""

from importlib import import_module
from pkgutil import iter_modules

from dassl.data.datasets import DATASET_REGISTRY  # noqa: F401

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
