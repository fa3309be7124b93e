"""Import the names of a package when they are first used.

A package that states its imports under ``if TYPE_CHECKING:`` shows them to type checkers and to
readers; at run time this module imports each of them on first use, so that `astra --help` does not
wait for the database driver.
"""

import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path


def on_first_use(
    package: str, as_public: Callable[[object], object] = lambda value: value
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package with imports for type checkers.

    Whoever uses a name of the package gets what `as_public` makes of its value.
    """
    module = sys.modules[package]

    @cache
    def homes() -> dict[str, tuple[str, str]]:
        """Return the module that defines each name, and its name there."""
        import ast

        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        blocks = [node for node in tree.body if isinstance(node, ast.If)]
        return {
            alias.asname or alias.name: (str(node.module), alias.name)
            for block in blocks
            if ast.unparse(block.test) == "TYPE_CHECKING"
            for node in block.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def get(name: str) -> object:
        if name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, name_there = homes()[name]
        return as_public(getattr(importlib.import_module(home), name_there))

    return get, lambda: sorted({*vars(module), *homes()})


class Module:
    """A module that is imported when one of its names is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self._name), name)
