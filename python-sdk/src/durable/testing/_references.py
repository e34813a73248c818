"""References to objects, by which another process can import them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import reduce
from types import ModuleType
from typing import Any, NamedTuple

from durable.errors import InvalidArgument

__all__ = ["Home", "Reference", "imported", "reference_to", "resolved"]


class Home(NamedTuple):
    """A module by its name, and by its file in case it is not on the path.

    Test modules often are not.
    """

    module: str
    file: str | None


class Reference(NamedTuple):
    """A module and the name of an object in it."""

    module: str
    file: str | None
    name: str

    @property
    def home(self) -> Home:
        return Home(self.module, self.file)


def reference_to(thing: object, what: str) -> Reference:
    """Return the reference to a class, a function or an instance.

    Raises InvalidArgument, calling it `what`, if another process could not import it.
    """
    own = str(getattr(thing, "__module__", "") or type(thing).__module__)
    qualified = str(getattr(thing, "__qualname__", type(thing).__qualname__))
    if own in sys.modules and own != "__main__":
        module = sys.modules[own]
        if _named(module, qualified) is thing:
            return Reference(own, _file(module), qualified)
    others = [module for name, module in sys.modules.items() if name != "__main__"]
    for module in [*(m for m in others if m.__name__ == own), *others]:
        for name, value in list(vars(module).items()):
            if value is thing:
                return Reference(module.__name__, _file(module), name)
    raise InvalidArgument(
        f"another process cannot import {what} {qualified}",
        hint="Assign it to a name in a module: not inside a function, nor in __main__.",
    )


def resolved(reference: Reference) -> Any:
    """Import a referenced object."""
    return _named(imported(reference.home), reference.name)


def imported(home: Home) -> ModuleType:
    """Import a module, by its name or from its file."""
    if home.module in sys.modules:
        return sys.modules[home.module]
    if home.file is None or _is_found(home):
        return importlib.import_module(home.module)
    spec = importlib.util.spec_from_file_location(home.module, home.file)
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no module in {home.file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[home.module] = module
    spec.loader.exec_module(module)
    return module


def _is_found(home: Home) -> bool:
    """Whether importing by name finds that file."""
    try:
        spec = importlib.util.find_spec(home.module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin == home.file


def _file(module: ModuleType) -> str | None:
    return getattr(module, "__file__", None)


def _named(module: ModuleType, qualified: str) -> Any:
    try:
        return reduce(getattr, qualified.split("."), module)
    except AttributeError:
        return None
