"""The README and the docs: links, examples and commands are tried."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from astra.cli.group import main
from astra.errors import AstraError
from astra.states import PlanState
from tests.conftest import ROOT
from tests.forks import astra
from tests.pages import BLOCK, blocks, commands
from tests.sample_tasks import fill
from tests.servers import wait_for

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page):
    for program, *words in commands(page):
        if program == "astra":
            command = main.commands[words[0]]
            command.make_parser(click.Context(command)).parse_args(list(words[1:]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles_and_links_resolve(page):
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_are_named_exist(page):
    text = page.read_text()
    for path in re.findall(r"\b(?:astra|tests|benchmarks|config)/[\w/]+\.py\b", text):
        assert (ROOT / path).exists(), path
    for path, name in re.findall(r"`([\w/]*test_\w+\.py)::(\w+)", text):
        files = [ROOT / path] if "/" in path else (ROOT / "tests").rglob(path)
        defined = re.compile(rf"(?:def|class) {name}\b")
        assert any(defined.search(file.read_text()) for file in files), f"{path}::{name}"


def test_every_exit_status_is_documented_in_one_place():
    def below(kind: type) -> set[int]:
        return {kind.exit_status}.union(*(below(other) for other in kind.__subclasses__()))

    page = (ROOT / "docs" / "exit-statuses.md").read_text()
    documented = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert documented == below(AstraError) | {state.exit_status for state in PlanState}


def test_every_command_is_documented():
    pages = "\n".join(page.read_text() for page in PAGES)
    for name, command in main.commands.items():
        assert command.hidden or f"astra {name}" in pages or f"`{name}`" in pages, name


def _typed(console: str) -> list[str]:
    """What is typed in a console; the rest of it is what was answered."""
    return [line[2:] for line in console.splitlines() if line.startswith("$ ")]


def _run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *words = shlex.split(line)
    if program == "astra":
        return astra(*words, cwd=folder)
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)


def test_the_first_night_runs_from_top_to_bottom(tmp_path):
    page = ROOT / "docs" / "first-night.md"
    for kind, text in BLOCK.findall(page.read_text()):
        if kind == "python":
            name = text.splitlines()[0].removeprefix("# file: ")
            (tmp_path / name).write_text(text)
        for line in _typed(text) if kind == "console" else []:
            done = _run(line, tmp_path)
            failed = "failed rows:" in done.stdout  # one of the page's rows fails, as it says
            assert done.returncode == (8 if failed else 0), (line, done.stdout, done.stderr)
    shown = astra("status", "1", cwd=tmp_path).stdout
    assert "failed rows: 999 done + 1 failed = 1,000 rows" in shown


@pytest.mark.slurm
@pytest.mark.postgres
def test_the_night_of_the_readme_and_the_profile_of_the_docs_run_on_a_cluster(slurm, tmp_path):
    readme, profiles = ROOT / "README.md", ROOT / "docs" / "profiles-and-templates.md"
    (tmp_path / "mytasks.py").write_text(blocks(readme, "python")[0])
    (tmp_path / "astra.toml").write_text(blocks(profiles, "toml")[0] + '[run]\ntemplates = "own"\n')
    (tmp_path / "own").mkdir()
    site = blocks(profiles, "jinja")[0].replace("/archive", str(tmp_path))
    (tmp_path / "own" / "mounted.sh.j2").write_text(site)
    fill(20)
    for line in _typed("".join(blocks(readme, "console"))):
        done = _run(line, tmp_path)
        assert done.returncode in ((0, 3) if "status" in line else (0,)), (line, done.stderr)
    wait_for(slurm.idle, "the end of the array", 120)
    assert "whole: 20 done = 20 rows" in _run("astra status 1", tmp_path).stdout
    fill(5)
    (dry_run,) = (line for line in commands(profiles) if "--dry-run" in line)
    template = ["-o", "template=mounted.sh.j2"]
    shown = _run(shlex.join([*dry_run, *template]), tmp_path)
    assert "#SBATCH --partition=long" in shown.stdout and "does not see" in shown.stdout, shown
    assert "plan 2" not in _run("astra plans", tmp_path).stdout
