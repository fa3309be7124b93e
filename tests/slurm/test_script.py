"""The batch script: readable, quoted, right for bash and shellcheck, and honest about its end."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra.config import profiles, shipped_files
from astra.config import settings as config
from astra.errors import ScriptError
from astra.slurm import script
from tests.scripts import SCRIPT, sbatch_reads

#: Those that a profile may ask Slurm to warn with, by --signal=B:
_WARNINGS = ("TERM", "HUP", "INT", "QUIT", "ABRT", "ALRM", "USR1", "USR2", "URG", "XCPU")

# Any text that an environment can hold.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)


@pytest.fixture(autouse=True)
def no_site_templates() -> None:
    config.use(config.Config())


def render(template: str = "element.sh.j2", site: Path | None = None, **changes: object) -> str:
    return script.render(template, replace(SCRIPT, **changes), site)  # type: ignore[arg-type]


def bash(text: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "7", **environ}
    return subprocess.run(
        ["bash"], input=text, env=environment, capture_output=True, text=True, timeout=120
    )


class TestText:
    @pytest.mark.parametrize("template", ["element.sh.j2", "scratch.sh.j2"])
    @pytest.mark.parametrize("setup", [[], ["module load x"]])
    def test_bash_and_shellcheck_agree(
        self, template: str, setup: list[str], tmp_path: Path
    ) -> None:
        file = tmp_path / "script.sh"
        file.write_text(render(template, setup=setup))
        subprocess.run(["bash", "-n", file], check=True)
        if shutil.which("shellcheck"):
            done = subprocess.run(["shellcheck", file], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout

    def test_says_how_it_was_made_and_is_short(self) -> None:
        text = render()
        assert "for plan 12 of slam.slam: pages 1-1000, 1 for each element" in text
        assert "Made by astra on 2026-01-02 03:04:05 UTC" in text
        assert len(text.splitlines()) < 60
        assert "\n\n\n" not in text and not [x for x in text.splitlines() if x != x.rstrip()]

    def test_directives_stand_first(self) -> None:
        head = render().split("\n\n")[0].splitlines()
        assert head == [
            "#!/bin/bash",
            "#SBATCH --job-name=astra-12-c0ffee",
            "#SBATCH --array=1-1000%50",
            "#SBATCH --output=/runs/logs/%A_%a.log",
            "#SBATCH --time=02:00:00",
            "#SBATCH --exclusive",
            "#SBATCH --open-mode=append",
        ]
        assert "append" not in render(directives=[("open-mode", "truncate")])

    def test_the_command_names_plan_job_and_element(self) -> None:
        command = render(offset=2000, python=("/opt/my python/bin/python",)).split(" &\n")[0]
        assert command.splitlines()[-1] == (
            "'/opt/my python/bin/python' -P -m astra run-page --plan 12 --job c0ffee "
            "--element $((SLURM_ARRAY_TASK_ID + 2000))"
        )

    def test_a_comment_cannot_become_a_command(self) -> None:
        text = render(about="a\ntouch /tmp/x", made_by="\r\nfalse\x85false\u2028false")
        assert "\ntouch" not in text and "\nfalse" not in text
        assert "\x85" not in text and "\u2028" not in text

    def test_no_secret_gets_in(self) -> None:
        with pytest.raises(ScriptError, match="pgpass") as caught:
            render(environment={"ASTRA_DATABASE_URL": "postgresql://me:geheim@h/db"})
        assert "geheim" not in str(caught.value)
        with pytest.raises(ScriptError, match="the command that runs Python holds a password"):
            render(python=["python", "postgresql://me:geheim@h/db"])

    def test_a_shipped_profile_fits(self) -> None:
        general = profiles.get("general", config.Config())
        assert "#SBATCH --signal=B:USR1@120" in render(directives=profiles.directives(general))


class TestQuoting:
    @settings(max_examples=60)
    @given(value=TEXT)
    def test_values_arrive_unchanged(self, value: str) -> None:
        text = render(environment={"V": value}, setup=["printenv V", "exit 0"])
        environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "7"}
        done = subprocess.run(["bash"], input=text.encode(), env=environment, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == value.encode() + b"\n"

    @given(value=TEXT)
    def test_a_quoted_value_is_one_word(self, value: str) -> None:
        assert shlex.split(script.quote(value)) == [value]

    @given(value=TEXT)
    def test_a_directive_is_one_word_or_refused(self, value: str) -> None:
        if any(ord(c) < 32 or ord(c) == 127 for c in value):
            with pytest.raises(ScriptError, match="control character"):
                script.directive(value)
        else:
            assert sbatch_reads(script.directive(value)) == [value]

    def test_refused(self) -> None:
        with pytest.raises(ScriptError, match="NUL"):
            script.quote("a\0b")
        with pytest.raises(ScriptError, match="neither text nor number"):
            script.quote(None)
        with pytest.raises(ScriptError, match=r"element.sh.j2|base.sh.j2"):
            render(environment={"V": "a\0b"})
        with pytest.raises(ScriptError, match="name of an environment variable"):
            render(environment={"A B": "x"})

    def test_a_percent_sign_in_the_folder_of_logs(self) -> None:
        assert script.log_pattern("/a%j") == "/a%%j/%A_%a.log"
        with pytest.raises(ScriptError, match="backslash"):
            script.log_pattern("/a\\b")


class TestArray:
    @pytest.mark.parametrize(
        "indices, throttle, spec",
        [
            ([1], None, "1"),
            ([1, 2], None, "1-2"),
            ([5, 3, 4, 9, 1, 9], None, "1,3-5,9"),
            (range(1, 1001), 50, "1-1000%50"),
            ([0, 2], 1, "0,2%1"),
        ],
    )
    def test_examples(self, indices: list[int], throttle: int | None, spec: str) -> None:
        assert script.array_spec(indices, throttle) == spec

    @given(st.sets(st.integers(0, 300), min_size=1), st.none() | st.integers(1, 9))
    def test_names_exactly_the_indices(self, indices: set[int], throttle: int | None) -> None:
        spec, _, bound = script.array_spec(indices, throttle).partition("%")
        named: list[int] = []
        for part in spec.split(","):
            first, _, last = part.partition("-")
            named += range(int(first), int(last or first) + 1)
        assert named == sorted(indices)
        assert bound == (str(throttle) if throttle else "")
        assert len(spec.split(",")) == sum(i - 1 not in indices for i in indices)  # no longer

    @pytest.mark.parametrize("indices, throttle", [([], None), ([-1], None), ([1], 0)])
    def test_refused(self, indices: list[int], throttle: int | None) -> None:
        with pytest.raises(ValueError):
            script.array_spec(indices, throttle)


class TestTemplates:
    def test_a_sites_own_comes_first_and_may_extend_the_shipped(self, tmp_path: Path) -> None:
        (tmp_path / "element.sh.j2").write_text(
            '{% extends "astra/element.sh.j2" %}{% block finish %}echo ours\n{% endblock %}'
        )
        assert "echo ours\nexit" in render(site=tmp_path)
        config.use(config.Config(run=config.Run(templates=tmp_path)))
        assert "echo ours" in render()

    @pytest.mark.parametrize(
        "text, words",
        [
            ("one\n{{ plann }}", ["line 2", "'plann' is undefined"]),
            ("\n\n{{ plann | quote }}", ["line 3", "'plann'"]),
            ("one\n\n{% if %}", ["line 3", "Expected an expression"]),
            ("{{ plan | qoute }}", ["line 1", "qoute"]),
            ('{% extends "base.sh" %}', ["no template 'base.sh'", "'base.sh.j2'"]),
            ("\n{{ job_name.a.b }}", ["line 2", "has no attribute 'a'"]),
            (
                '{% extends "element.sh.j2" %}\n{% block finnish %}{% endblock %}',
                ["own.sh.j2, line 2: element.sh.j2 has no block 'finnish'", "'finish'?"],
            ),
            ("\n\n{{ 1 / 0 }}", ["line 3", "division"]),
            ("#!/bin/bash\necho", ["--job-name", "base.sh.j2"]),
            ("echo", ["begin with #!"]),
        ],
    )
    def test_faults_name_template_and_line(
        self, tmp_path: Path, text: str, words: list[str]
    ) -> None:
        (tmp_path / "own.sh.j2").write_text(text)
        with pytest.raises(ScriptError) as caught:
            render("own.sh.j2", tmp_path)
        for word in words if "base.sh" in text else ["own.sh.j2", *words]:
            assert word in str(caught.value)

    def test_directives_behind_a_command_would_be_lost(self, tmp_path: Path) -> None:
        base = (shipped_files.templates_dir() / "base.sh.j2").read_text()
        (tmp_path / "own.sh.j2").write_text(base.replace("#!/bin/bash\n", "#!/bin/bash\nset -u\n"))
        with pytest.raises(ScriptError, match="before the first command"):
            render("own.sh.j2", tmp_path)

    def test_unknown_ones_and_paths(self) -> None:
        with pytest.raises(ScriptError, match=r"element.sh.j2"):
            render("elemnet.sh.j2")
        with pytest.raises(ScriptError, match="no template"):
            render("../config/astra.toml")


class TestRunning:
    """What bash makes of it, with a small program in place of the element."""

    @pytest.fixture
    def python(self, tmp_path: Path) -> Path:
        """An element that says when it began, and ends at once, or waits for a signal."""
        file = tmp_path / "my python"
        file.write_text(
            # Not named by the first line itself: the path may hold a blank.
            "#!/bin/sh\n''':'\n"
            f'exec {shlex.quote(sys.executable)} "$0" "$@"\n'
            "'''\n"
            "import os, signal, sys, time\n"
            "def told(number, frame):\n"
            "    print('told', number, flush=True); time.sleep(0.3); print('stored'); sys.exit(75)\n"
            "signal.signal(signal.SIGTERM, told)\n"
            "print('began', *sys.argv[4:], os.environ['PYTHONUNBUFFERED'],"
            " os.environ['OMP_NUM_THREADS'], flush=True)\n"
            "while 'WAITS' in os.environ:\n"
            "    time.sleep(0.05)  # a signal just before one long sleep would be handled after it\n"
            "sys.exit(int(os.environ['STATUS']))\n"
        )
        file.chmod(0o755)
        return file

    def site(self, folder: Path) -> Path:
        (folder / "own.sh.j2").write_text(
            '{% extends "element.sh.j2" %}{% block finish %}echo "finish $status"\n{% endblock %}'
        )
        return folder

    @pytest.mark.parametrize("status", [0, 3, 77, 127, 130, 255])
    def test_its_status_is_the_elements(self, status: int, python: Path, tmp_path: Path) -> None:
        text = render("own.sh.j2", self.site(tmp_path), python=(str(python),), offset=10)
        done = bash(text, STATUS=str(status), SLURM_CPUS_PER_TASK="3")
        assert done.returncode == status
        assert done.stdout.splitlines() == [
            "began run-page --plan 12 --job c0ffee --element 17 1 3",
            f"finish {status}",
        ]

    @pytest.mark.parametrize("name", _WARNINGS)
    @pytest.mark.parametrize("times", [1, 3])
    def test_signals_are_handed_on_and_the_end_is_waited_for(
        self, name: str, times: int, python: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "script.sh"
        file.write_text(render("own.sh.j2", self.site(tmp_path), python=(str(python),)))
        environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "7", "STATUS": "0"}
        with subprocess.Popen(
            # A shell cannot trap a signal that was ignored when it started, as HUP is under nohup.
            ["env", "--default-signal=HUP", "bash", file], env={**environment, "WAITS": "1"},
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("began")
                for _ in range(times):
                    process.send_signal(signal.Signals[f"SIG{name}"])
                    time.sleep(0.05)
                rest = process.communicate(timeout=60)[0].splitlines()
            finally:
                with suppress(ProcessLookupError):  # nobody is left, unless the shell died alone
                    os.killpg(process.pid, signal.SIGKILL)
        assert rest[0] == "told 15"
        assert rest[-2:] == ["stored", "finish 75"]
        assert process.returncode == 75

    def test_an_element_that_is_killed(self, tmp_path: Path) -> None:
        file = tmp_path / "python"
        file.write_text("#!/bin/bash\nkill -9 $$\n")
        file.chmod(0o755)
        done = bash(render("own.sh.j2", self.site(tmp_path), python=(str(file),)))
        assert (done.returncode, done.stdout) == (137, "finish 137\n")

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"chdir": "/no such folder"}, "does not see the run directory"),
            ({"setup": ["echo a", "false", "echo b"]}, ""),
            ({"setup": ["cd /no/such/folder"]}, "No such file"),
        ],
    )
    def test_ends_at_once_where_the_ground_is_missing(
        self, changes: dict[str, object], words: str, python: Path
    ) -> None:
        done = bash(render(python=(str(python),), **changes), STATUS="0")
        assert done.returncode == 1
        assert "began" not in done.stdout and "b" not in done.stdout
        assert words in done.stderr

    def test_says_that_it_is_an_array(self, python: Path) -> None:
        done = subprocess.run(["bash"], input=render(), env={}, capture_output=True, text=True)
        assert done.returncode != 0
        assert "submit it with sbatch" in done.stderr

    def test_threads_that_are_set_stay(self, python: Path) -> None:
        done = bash(render(python=(str(python),)), STATUS="0", OMP_NUM_THREADS="9")
        assert done.stdout.split()[-1] == "9"

    def test_scratch_files_are_copied_and_removed(self, tmp_path: Path, python: Path) -> None:
        (tmp_path / "from").mkdir()
        (tmp_path / "from" / "grid.npy").write_text("x")
        (tmp_path / "scratch").mkdir()
        setup = ["export ASTRA_SCRATCH_FROM=" + shlex.quote(str(tmp_path / "from"))]
        text = render("scratch.sh.j2", python=(str(python),), setup=setup).replace(
            "\nstop()", '\nls "$ASTRA_SCRATCH"\nstop()'
        )
        done = bash(text, STATUS="4", TMPDIR=str(tmp_path / "scratch"))
        assert done.returncode == 4, done.stderr
        assert done.stdout.splitlines()[0] == "grid.npy"
        assert "ended with status 4" in done.stdout
        assert not list((tmp_path / "scratch").iterdir())
