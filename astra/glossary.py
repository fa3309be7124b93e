"""Describe columns by their names, for models that give no ``help_text``: see glossary.txt."""

from pathlib import Path

_LINES = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()

_DESCRIPTIONS = dict(line.split(": ", 1) for line in _LINES if ": " in line)

_PREFIXES = {
    "e_": "uncertainty of",
    "raw_": "raw",
    "initial_": "initial",
    "calibrated_": "calibrated",
}


def describe(name: str) -> str | None:
    """Look up what a column of this name holds; None where that is not known.

    >>> describe("raw_e_teff")
    'raw uncertainty of effective temperature [K]'
    """
    if name in _DESCRIPTIONS:
        return _DESCRIPTIONS[name]
    for prefix, description in _PREFIXES.items():
        if name.startswith(prefix) and (rest := describe(name.removeprefix(prefix))):
            return f"{description} {rest}"
    return None


class _ByName(type):
    def __getattr__(cls, name: str) -> str | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return describe(name)


class Glossary(metaclass=_ByName):
    """Descriptions as attributes, for ``help_text=Glossary.teff``; None where a name is unknown."""
