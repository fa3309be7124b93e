"""The configuration of a test, for its process and those that it starts."""

from pathlib import Path

import pytest

from astra.config import settings


def configure(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a text in `folder` the configuration file, and read it at the next use."""
    file = folder / "astra.toml"
    file.write_text(text)
    monkeypatch.setenv("ASTRA_CONFIG", str(file))
    settings.reset()
    return file
