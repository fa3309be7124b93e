"""100,000 hostile strings: each arrives unchanged at bash and at the database, or is refused.

Drawn from a fixed seed, and sent by thousands: one script of bash, one statement of SQL.
"""

import json
import os
import random
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import peewee
import pytest

from astra.config import profiles, secrets, settings
from astra.config.run_folder import check_folder, write_whole
from astra.database.connection import connection, database, dialect
from astra.errors import AstraError, ConfigError, DatabaseError, ScriptError, TaskError
from astra.models import BossVisitSpectrum
from astra.models.failures import Failure
from astra.models.locks import LockHeld, hold
from astra.models.plans import Page, Plan
from astra.plan.pending import generate_queries_for_task, group_column
from astra.plan.plan import create_plan
from astra.results.checkpoint import write
from astra.results.rows import Checkpoint, HandedRow, Refusal, Target, YieldedResult
from astra.slurm import script
from astra.tasks.arguments import parse_arguments
from astra.tasks.signature import choose_model, find_task, task_name
from tests.sample_tasks import Measured, fill, measure
from tests.scripts import SCRIPT, sbatch_reads
from tests.servers import Slurm

_PIECES = [
    "'", '"', "`", "\\", "\n", "\r", "\t", " ", "\0", "\x1b[2J", "\x7f", "\x85", "\u2028", "\ufeff",
    "$(touch pwned)", "`touch pwned`", "${IFS}", "$PATH", "$$", "$((1/0))", "; touch pwned;",
    "&& touch pwned", "| touch pwned", "> pwned", "<(id)", "*", "?", "[a-z]", "~", "~root", "!", "!!",
    "#", "\n#SBATCH --uid=0\n", "%", "%s", "%(x)s", "%%", "%A_%a", "%j", "%N", "{{ 7*7 }}",
    "{% raw %}", "{# x #}", "{}", "{0}", "--", "-", "-rf", "--wrap=id", "-e", "=", ":", ",", "../", "/",
    "/etc/passwd", "'; DROP TABLE plan; --", '"; DROP TABLE plan; --', "$$; SELECT 1; $$", "?", ":x",
    "E'\\''", "NULL", "null", "{1,2}", "{\"a\"}", "__import__('os').system('touch pwned')", "\U0001f52d",
    "é", "e\u0301", "\u202e", "ß", "\uff10", "\udc80", "\ud800", "EOF\n", "a", "b c", "1", "0x", "1e9", "",
]  # fmt: skip

#: How many strings went through what; conftest.py adds them up, of a whole run.
TRIED: Counter[str] = Counter()


def hostile(n: int, where: str, least: int = 0) -> list[str]:
    """`n` strings, others for each place; now and then a very long one."""
    TRIED[where] += n
    rng = random.Random(where)
    found = []
    for i in range(n):
        text = "".join(rng.choices(_PIECES, k=rng.randint(1, 6)))
        found.append(text * 400 if i % 1000 == 7 else text)
    return [text or "'" for text in found] if least else found


def arrives(text: str) -> bool:
    """Whether UTF-8 without NUL can hold it."""
    return "\0" not in text and not re.search(r"[\ud800-\udfff]", text)


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path) -> Iterator[None]:
    """No string was run as a command, by whatever shell."""
    yield
    assert not list(tmp_path.rglob("pwned*")) and not Path("pwned").exists()


def refused_or(
    text: str, call: Callable[[], object], kinds: type[AstraError] = AstraError
) -> object:
    """What `call` gives; None if it refuses, which it may with an error of astra's alone."""
    try:
        return call()
    except kinds as error:
        assert str(error).strip()
        return None


def bash(text: str) -> bytes:
    done = subprocess.run(
        ["bash"], input=text.encode(), capture_output=True,
        env={"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b""), done.stderr[:2000]
    return done.stdout


class TestBash:
    def test_every_word_that_is_quoted(self) -> None:
        values = hostile(28_000, "quote")
        quoted = {v: refused_or(v, partial(script.quote, v), ScriptError) for v in values}
        assert {v for v, word in quoted.items() if word is None} == {
            v for v in values if not arrives(v)
        }
        good = [v for v in quoted if arrives(v)]
        lines = [f"printf '%s\\0' {quoted[v]}" for v in good]
        assert bash("\n".join(lines)).split(b"\0")[:-1] == [v.encode() for v in good]

    def test_values_arrive_in_a_script_unchanged(self, tmp_path: Path) -> None:
        values = [v for v in hostile(8_000, "environment") if arrives(v)]
        good = [v for v in values if not secrets.has_password(v)]
        names = [f"V{i}" for i in range(len(good))]
        show = [f"printf '%s\\0' \"${name}\"" for name in names]
        text = script.render(
            "element.sh.j2",
            replace(
                SCRIPT, chdir=tmp_path, environment=dict(zip(names, good, strict=True)),
                setup=[*show, "exit 0"],
            ),
        )  # fmt: skip
        assert bash(text).split(b"\0")[:-1] == [v.encode() for v in good]

    def test_comments_of_a_script_stay_comments(self, tmp_path: Path) -> None:
        for a, b in zip(*[iter(hostile(400, "comment"))] * 2, strict=True):
            change = partial(replace, SCRIPT, chdir=tmp_path, setup=["exit 0"])
            made = change(about=a + b, made_by=b, made_at=a)
            text = refused_or(a, partial(script.render, "element.sh.j2", made), ScriptError)
            if text is None:
                assert not arrives(a) or not arrives(b)
            else:
                assert str(text).count("\n") == _PLAIN_LINES and "\n#SBATCH --uid" not in str(text)

    def test_folders_that_scripts_are_written_to_and_start_in(self, tmp_path: Path) -> None:
        scripts, places = [], []
        for i, name in enumerate(hostile(300, "folder", least=1)):
            place = tmp_path / str(i) / name.replace("/", "_")[:80]
            if secrets.has_password(str(place)):
                continue
            settings.use(settings.Config(run=settings.Run(dir=place)))

            def render(place: Path = place) -> str:
                check_folder(place / "plan-1")
                return script.render(
                    "element.sh.j2", replace(SCRIPT, chdir=place, setup=["pwd -P", "exit 0"])
                )

            try:
                text = refused_or(name, render)
            except UnicodeEncodeError:  # os.mkdir's own: no file system knows such a name
                text = None
            if text is None:
                assert not arrives(name)
                continue
            write_whole(place / "plan-1" / "script.sh", str(text), 0o700)
            places.append(os.path.realpath(place))
            scripts.append(place / "plan-1" / "script.sh")
        words = [f"bash {script.quote(path)}; printf '\\0'" for path in scripts]
        run = "export SLURM_ARRAY_TASK_ID=1\n" + "\n".join(words)
        assert bash(run).split(b"\n\0")[:-1] == [os.fsencode(place) for place in places]

    def test_the_interpreter_and_the_token_stay_single_words(self) -> None:
        for value in hostile(6_000, "command"):
            made = replace(SCRIPT, python=(value,), arguments=(value,))
            words = refused_or(value, lambda made=made: made.command, ScriptError)
            if words is not None:
                start = str(words).partition(" --element ")[0]
                assert shlex.split(start)[0] == value == shlex.split(start)[-1]


_PLAIN_LINES = len(
    script.render("element.sh.j2", replace(SCRIPT, chdir="/", setup=["exit 0"])).splitlines()
)


class TestSbatch:
    def test_values_of_a_directive_arrive_unchanged(self) -> None:
        for value in hostile(20_000, "directive"):
            text = refused_or(value, partial(script.directive, value), ScriptError)
            if text is None:
                assert not value.isprintable() or not arrives(value)
            else:
                assert sbatch_reads(str(text)) == [value]

    def test_options_of_a_profile_arrive_unchanged(self) -> None:
        general = profiles.get("general", settings.Config())
        keys, good = sorted(profiles.OPTIONS), []
        for i, value in enumerate(hostile(9_000, "profile")):
            key = keys[i % len(keys)]
            given = refused_or(value, partial(general.with_options, **{key: value}))
            if given is not None:
                option = key.replace("_", "-")
                assert dict(profiles.directives(given))[option] == value  # type: ignore[arg-type]
                if refused_or(value, partial(script.directive, value), ScriptError) is None:
                    assert not value.isprintable() or not arrives(value)
                elif not secrets.holds_secret(value):
                    good.append((option, value))
        lines = _rendered(good).split("\n")
        lines = lines[lines.index("#SBATCH --output=/runs/logs/%A_%a.log") + 1 :][: len(good)]
        options = [line.removeprefix("#SBATCH --").partition("=") for line in lines]
        assert [(name, *sbatch_reads(text)) for name, _, text in options] == good

    def test_hostile_names_of_options_are_refused(self) -> None:
        general = profiles.get("general", settings.Config())
        for name in hostile(2_000, "option"):
            with pytest.raises(ConfigError):
                general.with_options(**{name: "x"})
            with pytest.raises(ScriptError):
                _rendered([(name + "'", "x")])

    @pytest.mark.slurm
    @pytest.mark.postgres
    def test_as_sbatch_itself_reads_them(self, slurm: Slurm, tmp_path: Path) -> None:
        values = [v for v in hostile(400, "sbatch") if arrives(v) and v.isprintable() and v.strip()]
        tried = 0
        for i, value in enumerate(values[:60]):
            text = _rendered([("comment", value), ("hold", None)])
            file = tmp_path / f"{i}.sh"
            file.write_text(text)
            job = slurm.run("sbatch", "--parsable", file).strip()
            shown = slurm.run("scontrol", "show", "job", job)
            assert f"\n   Comment={value} \n" in shown + "\n", (value, shown)
            slurm.run("scancel", job)
            tried += 1
        assert tried > 20


def _rendered(directives: list[tuple[str, str | None]]) -> str:
    return script.render("element.sh.j2", replace(SCRIPT, directives=directives, array="1"))


class TestNames:
    """What is looked up by its name is found, or refused: never evaluated."""

    def test_hostile_names_of_tasks_are_refused(self) -> None:
        for name in hostile(200, "task"):
            with pytest.raises(TaskError):
                find_task(name)

    def test_hostile_names_of_models_and_groups_are_refused(self) -> None:
        for name in hostile(5_000, "model"):
            with pytest.raises(TaskError):
                choose_model(measure, name)
            with pytest.raises(TaskError):
                group_column(BossVisitSpectrum, name)

    def test_hostile_names_of_templates_are_refused(self, tmp_path: Path) -> None:
        for name in hostile(2_000, "template"):
            with pytest.raises(ScriptError):
                script.render(name, SCRIPT, tmp_path)

    def test_hostile_folders_of_templates_change_no_script(self, tmp_path: Path) -> None:
        plain = script.render("element.sh.j2", SCRIPT)
        for name in hostile(100, "templates"):
            folder = tmp_path / name.replace("/", "_")
            text = refused_or(name, partial(script.render, "element.sh.j2", SCRIPT, folder))
            assert text in (plain, None)

    def test_arguments_of_tasks_arrive_unchanged(self) -> None:
        for name in hostile(1_000, "argument"):
            with pytest.raises(TaskError):
                parse_arguments(measure, {name + "'": "x"})
        for value in hostile(5_000, "--set"):
            found = refused_or(value, partial(parse_arguments, measure, {"computed": value}))
            if found is None:
                assert secrets.holds_secret(f"computed={value}")
            elif value.lower() not in ("none", "null"):
                assert json.loads(json.dumps(found)) == {"computed": value}
            refused_or(value, partial(parse_arguments, measure, {"raise_every": value}), TaskError)

    def test_values_of_the_configuration_arrive_or_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for value in hostile(3_000, "configuration"):
            for variable in ("ASTRA_RUN_DIR", "ASTRA_DATABASE_URL"):
                monkeypatch.setattr(os, "environ", {variable: value})  # even with a NUL
                found = refused_or(value, settings.load)
                if found is not None and value and variable == "ASTRA_RUN_DIR":
                    dir = found.run.dir  # type: ignore[attr-defined]
                    home = value.split("/")[0].startswith("~")
                    assert home or dir == Path(os.path.normpath(tmp_path / value))
            schema = refused_or(value, partial(settings._checked, value, "database.schema", "x"))
            assert schema is None or re.fullmatch(r"\w[\w$]*", str(schema))


class TestDatabase:
    """The same at PostgreSQL and at SQLite."""

    def test_parameters_arrive_in_the_database_unchanged(self, url: str) -> None:
        values = hostile(4_000, f"parameter {dialect().name}")
        good = [v for v in values if arrives(v)]
        mark = "%s" if dialect().name == "postgresql" else "?"
        rows: list[str] = []
        for start in range(0, len(good), 500):
            part = good[start : start + 500]
            sql = "SELECT " + ", ".join(f"CAST({mark} AS text)" for _ in part)
            rows += database.execute_sql(sql, part).fetchone()
        assert rows == good

    def test_results_are_stored_unchanged_or_fail_alone(self, url: str) -> None:
        """As elements write them: thousands in one statement; a bad one costs itself alone."""
        values = hostile(1_500, f"result {dialect().name}")
        yielded = []
        for i, value in enumerate(values, 1):
            handed = HandedRow(i, None, None, dialect().now() if i == 1 else None)
            handed.read = yielded[0].handed.read if yielded else handed.read
            yielded.append(YieldedResult(Measured(spectrum_pk=i, value=1.0, text=value), handed))
        with connection():
            write(Checkpoint(yielded), Target("t", BossVisitSpectrum, Measured), None)
            stored = dict(Measured.select(Measured.spectrum_pk, Measured.text).tuples())
            failed = {int(key) for (key,) in Failure.select(Failure.key).tuples()}
        assert failed == {i for i, v in enumerate(values, 1) if not arrives(v)}
        assert stored == {i: v for i, v in enumerate(values, 1) if arrives(v)}

    def test_messages_of_failures_are_stored_unchanged(self, url: str) -> None:
        """Messages and tracebacks are whatever a task raises; task names whatever it is called."""
        values = hostile(600, f"failure {dialect().name}")
        plain = [v for v in values if arrives(v) and secrets.hide(v) == v and len(v) < 2000]
        named = type("Named", (peewee.Model,), {"Meta": type("Meta", (), {"table_name": '"%(x)s'})})
        target = Target("'; DROP TABLE plan; -- %s", named, Measured)
        refusals = [Refusal(HandedRow(i, None), "E", v, v, v) for i, v in enumerate(plain)]
        with connection():
            write(Checkpoint(failures=refusals), target, None)
            found = {int(f.key): f.message for f in Failure.select()}
        assert found == dict(enumerate(plain))

    def test_names_and_arguments_of_plans_are_stored_unchanged(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Names and arguments in the statements that plan: held rows, locks, freezing."""
        fill(3)
        names = hostile(50, f"plan {dialect().name}")
        for name in [v for v in dict.fromkeys(names) if arrives(v)]:
            monkeypatch.setattr("astra.plan.selection.task_name", lambda function, name=name: name)
            made = refused_or(name, partial(create_plan, measure, BossVisitSpectrum,
                                            arguments={"computed": name}))  # fmt: skip
            if made is None:
                assert secrets.holds_secret(f"computed={name}")
                continue
            with connection():
                plan = Plan.get_by_id(made[0].plan)  # type: ignore[index]
                assert (plan.task, json.loads(plan.arguments)) == (name, {"computed": name})
                assert Page.get(Page.plan == plan.pk).keys == [3, 2, 1]
            held = create_plan(measure, BossVisitSpectrum)[0]
            assert (held.plan, held.held) == (None, 3)
        assert task_name(measure) == "tests.sample_tasks.measure"

    def test_the_current_folder_is_stored_unchanged_or_refused(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(3)
        for name in (b"caf\xe9", b"'; DROP TABLE plan; -- %s", b"a\nb"):
            folder = os.path.join(os.fsencode(tmp_path), name)
            os.mkdir(folder)
            monkeypatch.chdir(os.fsdecode(folder))
            if arrives(os.fsdecode(folder)):
                made = create_plan(measure, BossVisitSpectrum)[0]
                with connection():
                    plan = Plan.get_by_id(made.plan)
                    assert os.fsencode(plan.cwd) == folder
                    plan.delete_instance(recursive=True)
            else:
                with pytest.raises(AstraError, match=r"current folder.*not UTF-8"):
                    create_plan(measure, BossVisitSpectrum)

    def test_locks_of_hostile_names_exclude(self, url: str) -> None:
        for name in [v for v in hostile(60, f"lock {dialect().name}") if arrives(v)]:
            with (
                hold(name, "tries", "nothing"),
                pytest.raises(LockHeld, match="tries; see nothing"),
            ):
                with hold(name, "tries", "nothing"):
                    pass

    def test_names_of_tables_and_columns(self, url: str) -> None:
        values = hostile(3_000, f"name {dialect().name}")
        good = []
        for value in dict.fromkeys(values):
            if refused_or(value, partial(dialect().quote, value), DatabaseError) is None:
                assert not arrives(value) or set('"%') & set(value) or len(value) > 60 or not value
            elif len(value.encode()) <= 63:
                good.append(value)
        for start in range(0, len(good), 500):
            part = good[start : start + 500]
            sql = "SELECT " + ", ".join(f"1 AS {dialect().quote(v)}" for v in part)
            cursor = database.execute_sql(sql, ())
            assert [column[0] for column in cursor.description] == part
        assert len(good) > 100

    def test_tables_of_hostile_names(self, url: str) -> None:
        meta, plain = Measured._meta, Measured._meta.table_name
        tried = Counter[bool]()
        try:
            for name in hostile(60, f"table {dialect().name}", least=1):
                meta.set_table_name(name)

                def make_and_use(name: str = name) -> int:
                    dialect().quote(meta.table_name)
                    if len(name.encode()) > 40 or "." in name:
                        raise DatabaseError("left out here: indexes have names made of this one")
                    with connection(), database.atomic():
                        Measured.create_table()
                        Measured.create(spectrum_pk=1, value=2.0)
                        count = Measured.select().where(Measured.value == 2.0).count()
                        next(iter(generate_queries_for_task(measure)))[1].count()
                        Measured.drop_table()
                        return count

                made = refused_or(name, make_and_use)
                assert made in (1, None)
                tried[made == 1] += 1
        finally:
            meta.set_table_name(plain)
        assert tried[True] > 5
