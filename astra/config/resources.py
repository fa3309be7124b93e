"""The folders that travel with the package: script templates and example configuration.

In a wheel they lie inside the package; in a checkout, which an editable install points to, at
the top of the repository.
"""

from pathlib import Path

from astra.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent


def templates_dir() -> Path:
    """The folder of the shipped script templates."""
    return _folder("slurm_templates", "slurm_templates", "base.sh.j2")


def config_dir() -> Path:
    """The folder of the example configuration and of the shipped profiles."""
    return _folder("config_examples", "config", "profiles.toml")


def _folder(in_wheel: str, in_checkout: str, holds: str) -> Path:
    places = (_PACKAGE / in_wheel, _PACKAGE.parent / in_checkout)
    for place in places:
        if (place / holds).is_file():
            return place
    raise ConfigError(
        f"{holds} is neither in {places[0]} nor in {places[1]}: the installation of astra is "
        "incomplete; install it again"
    )
