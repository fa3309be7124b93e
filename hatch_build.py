"""Write the man page of the wheel: the help of the commands, as ``astra help`` shows it."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPage(BuildHookInterface):
    """Adds share/man/man1/astra.1, where man finds it beside the command."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        sys.path.insert(0, self.root)
        try:
            from astra.cli.manual import man_page
        finally:
            sys.path.remove(self.root)
        self.folder = tempfile.TemporaryDirectory()  # not among the distributions
        path = Path(self.folder.name, "astra.1")
        path.write_text(man_page(), encoding="utf-8")
        build_data["shared_data"][str(path)] = "share/man/man1/astra.1"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.folder.cleanup()
