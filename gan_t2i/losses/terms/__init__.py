"""The auxiliary losses, one module each. Importing this package registers all of its modules."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
