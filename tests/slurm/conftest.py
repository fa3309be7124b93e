"""Programs with the names of Slurm's commands, for answers that a real cluster does not give to order."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astra.slurm import limits
from tests.servers import wait_for

Commands = Callable[..., None]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Small programs with the names of Slurm's, which are found before any others."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")

    def make(**scripts: str) -> None:
        limits.configuration.cache_clear()
        for name, script in scripts.items():
            file = tmp_path / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f'#!/bin/bash\necho "$0 $*" >> {tmp_path}/calls\n{script}\n')
            file.chmod(0o755)

    return make


@pytest.fixture
def time_after_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count a command's time only once it has ended, or has created the file ``spoke.PID``."""
    communicate = subprocess.Popen.communicate

    def communicate_late(process: subprocess.Popen[str], *args: Any, **options: Any) -> Any:
        spoke = tmp_path / f"spoke.{process.pid}"
        wait_for(lambda: process.poll() is not None or spoke.exists(), "the command's words", 60)
        return communicate(process, *args, **options)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate_late)
