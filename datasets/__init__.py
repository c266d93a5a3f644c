"""The data sets, one in each module. All modules are imported, so that every data set is registered."""

from importlib import import_module
from pkgutil import iter_modules

from dassl.data.datasets import DATASET_REGISTRY  # noqa: F401

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
