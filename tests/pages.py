"""What the pages of the documentation show: blocks of code and commands."""

import re
import shlex
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == kind]


def commands(page: Path) -> list[list[str]]:
    lines = [line for text in blocks(page, "console") for line in text.splitlines()]
    indented = [line[4:] for line in page.read_text().splitlines() if line.startswith("    ")]
    found = [line[2:] for line in lines if line.startswith("$ ")]
    found += [line for line in indented if line.startswith("astra ")]
    return [shlex.split(line) for line in found]
