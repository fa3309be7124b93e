"""Programs with the names of Slurm's commands, for answers that a real cluster does not give to order."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Commands = Callable[..., dict[str, str]]


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """Small programs with the names of Slurm's, and the environment in which they are found."""

    def make(**scripts: str) -> dict[str, str]:
        for name, script in scripts.items():
            file = tmp_path / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f'#!/bin/bash\necho "$0 $*" >> {tmp_path}/calls\n{script}\n')
            file.chmod(0o755)
        return {**os.environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}

    return make
