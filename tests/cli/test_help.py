"""Help, examples, the man page and what a shell completes."""

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest
from click.shell_completion import ZshComplete
from click.testing import CliRunner

from astra.cli.examples import EXAMPLES
from astra.cli.group import main
from astra.cli.manual import man_page
from astra.config import settings
from astra.models import BossVisitSpectrum
from astra.plan.plan import create_plan
from tests.conftest import ROOT
from tests.sample_tasks import fill, measure


def every_command(group: click.Group, before: str = "") -> dict[str, click.Command]:
    found = {}
    for name, command in group.commands.items():
        if not command.hidden:
            found[f"{before}{name}"] = command
        if isinstance(command, click.Group):
            found |= every_command(command, f"{before}{name} ")
    return found


COMMANDS = every_command(main)


def test_every_command_has_two_examples_that_parse_and_no_other_has(sqlite_url):
    fill(2)
    create_plan(measure, BossVisitSpectrum)
    assert EXAMPLES.keys() == COMMANDS.keys()
    top = click.Context(main, info_name="astra", **main.context_settings)
    for name, examples in EXAMPLES.items():
        assert len(examples) >= 2
        for example in examples:
            words = shlex.split(example.removeprefix('eval "$(').removesuffix(')"'))
            assert words[0] == "astra"
            command, rest = main, words[1:]
            while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
                command, rest = command.commands[rest[0]], rest[1:]
            if "--help" not in rest:
                command.make_context(words[1], list(rest), parent=top)
        shown = CliRunner().invoke(main, [*name.split(), "--help"], prog_name="astra").output
        assert all(f"$ {example}" in shown for example in examples), shown


def test_help_shows_what_the_option_shows():
    for name in ("submit", "slam train"):
        shown = CliRunner().invoke(main, ["help", *name.split()], prog_name="astra").output
        option = CliRunner().invoke(main, [*name.split(), "--help"], prog_name="astra").output
        assert shown == option and "Usage: astra" in shown
    wrong = CliRunner().invoke(main, ["help", "submti"])
    assert wrong.exit_code == 2 and "Did you mean 'submit'" in wrong.output


@pytest.mark.parametrize("program", ["astra", "python -m astra"])
def test_help_ends_with_examples_however_astra_is_started(program):
    shown = CliRunner().invoke(main, ["plan", "--help"], prog_name=program).output
    assert shown.rstrip().endswith(EXAMPLES["plan"][-1])


def test_a_new_plan_is_shown_with_the_command_that_starts_it(url):
    fill(3)
    shown = CliRunner().invoke(main, ["plan", "tests.sample_tasks.measure"]).output
    local = " --local" if url.startswith("sqlite") else ""
    assert f"  next: astra submit 1{local}\n" in shown


def test_the_man_page_holds_every_command_and_is_in_the_wheel(tmp_path):
    page = man_page()
    for name in COMMANDS:
        assert f".SS astra {name}".replace("-", "\\-") in page, name
    assert "astra submit 17 \\-\\-dry\\-run" in page
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (inside,) = (n for n in archive.namelist() if n.endswith("share/man/man1/astra.1"))
        assert archive.read(inside).decode() == page


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_the_man_page_is_one_to_groff():
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww"], input=man_page(), capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""


def completed(words: str, shell: str = "zsh") -> dict[str, str]:
    """What a shell is offered for the last word, with its help."""
    typed = words.split(" ")
    environ = {
        **os.environ, "_ASTRA_COMPLETE": f"{shell}_complete", "COMP_WORDS": words,
        "COMP_CWORD": str(len(typed) - 1), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from astra.cli import main; main(prog_name='astra')"],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    return dict(zip(lines[1::3], lines[2::3], strict=True))


def test_what_a_shell_completes(sqlite_url, tmp_path, monkeypatch):
    fill(4)
    create_plan(measure, BossVisitSpectrum, limit=2)
    Path("mine.py").write_text(
        "from astra import task\n@task(many=True)\ndef own(rows):\n    yield\n"
    )
    Path("astra.toml").write_text(
        '[profiles.long]\npartition = "p"\n[nights.survey]\ntasks = ["a.b"]\n'
    )
    settings.reset()
    assert {"status", "submit"} <= completed("astra s").keys()
    assert {"slam.slam", "mine.own", "a.b"} == completed("astra plan ").keys()
    assert "measure on BossVisitSpectrum" in completed("astra status ")["1"]
    assert completed("astra plan slam.slam --profile lon") == {"long": "partition p"}
    assert completed("astra nightly ").keys() == {"survey"}
    assert "BossVisitSpectrum" in completed("astra plan slam.slam --input-model Boss")
    assert completed("astra resume 1 --only TIMEOUT,OUT").keys() == {"TIMEOUT,OUT_OF_MEMORY"}
    assert completed("astra report ").keys() == {"1", "survey"}
    # As the program itself completes: Python does not look for modules in this folder.
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != ""])
    complete = ZshComplete(main, {}, "astra", "_ASTRA_COMPLETE").get_completions
    for words, offered in (
        (["plans", "--state"], ["whole", "failed-rows", "running", "attention", "cancelled"]),
        (["run"], ["slam.slam", "mine.own", "a.b"]),
    ):
        assert [item.value for item in complete(words, "")] == offered
    assert str(tmp_path) in sys.path


def test_completion_is_silent_where_nothing_is_to_be_had(tmp_path, monkeypatch):
    assert completed("astra status ") == {} and not (tmp_path / "astra.db").exists()
    monkeypatch.setenv("ASTRA_DATABASE_URL", "postgresql://astra@127.0.0.1:1/x")
    assert completed("astra status ") == {}
    Path("astra.toml").write_text("[nonsense\n")
    assert completed("astra plan x") == {}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell):
    text = CliRunner().invoke(main, ["completion", shell]).output
    assert f"_ASTRA_COMPLETE={shell}_complete" in text
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
