"""Find the files that come with the package: script templates and example configuration.

A wheel has them inside the package; a checkout, to which an editable install points, at the top of
the repository.
"""

from pathlib import Path

from astra.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent


def templates_dir() -> Path:
    """Return the folder of the shipped script templates."""
    return _folder("slurm_templates", "slurm_templates", "base.sh.j2")


def config_dir() -> Path:
    """Return the folder of the example configuration and the shipped profiles."""
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
