"""Configuration: which file counts, where each value came from, and that no secret is shown."""

import dataclasses
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra.config import secrets, settings, shipped_files
from astra.errors import ConfigError
from tests.servers import folder

NOBODY = 65534


def write(folder: Path, text: str, name: str = "astra.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def load(
    folder: Path, text: str = "", path: str | Path | None = None, **environ: str
) -> settings.Config:
    """Load the configuration as a process does that has this folder and these variables alone."""
    if text:
        write(folder, text)
    with pytest.MonkeyPatch.context() as patch:
        for name in (*settings.VARIABLES, "XDG_CONFIG_HOME"):
            patch.delenv(name, raising=False)
        for name, value in {"HOME": str(folder / "home"), **environ}.items():
            patch.setenv(name, str(value))
        patch.chdir(folder)
        return settings.load(path)


class TestWhichFile:
    def test_without_a_file_the_defaults_are_used(self, tmp_path: Path) -> None:
        found = load(tmp_path)
        assert found.path is None
        assert found.database.url == f"sqlite:///{tmp_path}/astra.db"
        assert found.source("database.url") == "default"
        assert found.run.dir == tmp_path / "astra-runs"
        assert found.plan.limit == 1000

    def test_the_first_that_is_found_alone(self, tmp_path: Path) -> None:
        places = [
            write(tmp_path, "[plan]\nlimit = 3", "named.toml"),
            write(tmp_path, "[plan]\nlimit = 4", "variable.toml"),
            write(tmp_path, "[plan]\nlimit = 5"),
            write(tmp_path / "xdg" / "astra", "[plan]\nlimit = 6\n[element]\nbatch_size = 7"),
        ]
        environ = {"ASTRA_CONFIG": str(places[1]), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
        named = load(tmp_path, path=places[0], **environ)
        assert (named.plan.limit, named.path) == (3, places[0])
        assert load(tmp_path, **environ).plan.limit == 4
        del environ["ASTRA_CONFIG"]
        assert load(tmp_path, **environ).plan.limit == 5
        places[2].unlink()
        found = load(tmp_path, **environ)
        assert (found.plan.limit, found.element.batch_size) == (6, 7)

    def test_the_users_folder_is_in_home(self, tmp_path: Path) -> None:
        file = write(tmp_path / "home" / ".config" / "astra", "[plan]\nlimit = 8")
        assert load(tmp_path).path == file

    def test_a_variable_set_to_nothing_is_unset(self, tmp_path: Path) -> None:
        found = load(tmp_path, ASTRA_CONFIG="", ASTRA_DATABASE_URL="", XDG_CONFIG_HOME="")
        assert found.source("database.url") == "default"

    def test_settings_are_read_once_and_again_after_a_reset(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("ASTRA_CONFIG", raising=False)
        settings.reset()
        first = settings.current()
        assert settings.current() is first
        write(tmp_path, "[plan]\nlimit = 12")
        assert settings.current() is first
        settings.reset()
        assert settings.current().plan.limit == 12
        settings.reset()


class TestValues:
    def test_each_setting_knows_where_it_came_from(self, tmp_path: Path) -> None:
        text = '[database]\nurl = "postgresql:///a"\nretry_for_s = 5\n[run]\ndir = "r"'
        found = load(tmp_path, text, ASTRA_DATABASE_URL="postgresql:///b")
        assert found.database.url == "postgresql:///b"
        assert found.source("database.url") == "ASTRA_DATABASE_URL"
        assert found.source("database.retry_for_s") == str(tmp_path / "astra.toml")
        assert found.source("plan.limit") == "default"
        assert found.database.retry_for_s == 5.0

    def test_relative_paths_start_from_the_files_folder(self, tmp_path: Path) -> None:
        file = write(
            tmp_path / "site",
            '[database]\nurl = "sqlite:///my data.db?x=1"\n'
            '[run]\ndir = "../runs"\ntemplates = "~/t"\n[data]\nroot = "/abs"',
        )
        (tmp_path / "elsewhere").mkdir()
        found = load(tmp_path / "elsewhere", path=file, HOME="/home/me")
        assert found.database.url == f"sqlite:///{tmp_path}/site/my%20data.db?x=1"
        assert found.run.dir == tmp_path / "runs"
        assert found.run.templates == Path("/home/me/t")
        assert found.data.root == Path("/abs")

    def test_relative_paths_of_variables_start_here(self, tmp_path: Path) -> None:
        found = load(tmp_path, ASTRA_RUN_DIR="r", ASTRA_DATABASE_URL="sqlite:///x.db")
        assert found.run.dir == tmp_path / "r"
        assert found.database.url == f"sqlite:///{tmp_path}/x.db"

    @pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite:////abs/x.db", "sqlite://"])
    def test_other_sqlite_urls_stay(self, tmp_path: Path, url: str) -> None:
        assert load(tmp_path, ASTRA_DATABASE_URL=url).database.url == url

    def test_the_tree_is_frozen(self, tmp_path: Path) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            load(tmp_path).plan.limit = 3  # type: ignore[misc]

    def test_the_example_names_every_key_with_its_default(self, tmp_path: Path) -> None:
        example = (shipped_files.config_dir() / "astra.toml").read_text()
        lines = [line.removeprefix("#") for line in example.splitlines()]
        code = [x for x in lines if x and (x[0] in "[]" or x[0].islower() or x.startswith('    "'))]
        tables = tomllib.loads("\n".join(code))
        write(tmp_path, "\n".join(code))
        found = load(tmp_path, path="astra.toml")
        default = settings.Config()
        for key in settings._KEYS:
            section, name = key.split(".")
            assert name in tables[section], f"config/astra.toml does not show {key}"
            if key not in (
                "database.url",
                "database.schema",
                "run.dir",
                "run.templates",
                "data.root",
            ):
                assert getattr(getattr(found, section), name) == getattr(
                    getattr(default, section), name
                ), f"config/astra.toml shows another default of {key}"


class TestErrors:
    @pytest.mark.parametrize(
        "text, words",
        [
            ("[database]\nulr = 'x'", ["no key 'ulr' in [database]", "'url'"]),
            ("[databse]\nurl = 'x'", ["[databse]", "'database'"]),
            ("url = 'x'", ["[database] url"]),
            ("plan = 3", ["write [plan]"]),
            ("[run]\nlimit = 3", ["'limit'", "belongs to [plan]"]),
            ("[plan]\nlimit = '3'", ["[plan] limit = 3", "without quotes"]),
            ("[plan]\nlimit = true", ["whole number"]),
            ("[plan]\nlimit = 16777216", ["[plan] limit", "from 1 to 16777215"]),
            ("[element]\nmax_broken = 0", ["at least 1"]),
            ("[element]\nmax_broken = 2147483648", ["below 2147483648"]),
            ("[database]\nretry_for_s = inf", ["from 0 to 1,000,000,000"]),
            (f"[database]\nretry_for_s = 1{'0' * 400}", ["from 0 to 1,000,000,000"]),
            ("[database]\nanswer_timeout_s = 1e7", ["above 0 and at most 86,400"]),
            ("[slurm]\ntimeout_s = 1e7", ["above 0 and at most 86,400"]),
            ("[policy]\nexclude_for_s = 1e12", ["above 0 and at most 1,000,000,000"]),
            ("[clean]\ncompress_days = 1e6", ["from 0 to 36,500"]),
            ("[clean]\nkeep_nights_days = 1e6", ["from 0 to 36,500"]),
            ("[plan]\nlimit = 1.5", ["whole number"]),
            ("[element]\nlease_s = 0", ["lease_s"]),
            ("[element]\nlease_s = nan", ["above 0"]),
            ("[slurm]\ntimeout_s = inf", ["above 0"]),
            ("[run]\ndir = 3", ["text in quotes"]),
            ("[run]\ndir = ''", ["text in quotes"]),
            ('[run]\ndir = "a\\u0000b"', ["control characters"]),
            ("[plan]\nlimit = ", ["not valid TOML", "at end of document"]),
            ("[plan]\nlimit = 3\n\0", ["not valid TOML", "line 3"]),
            ("[profiles]\ngeneral = 3", ["[profiles.NAME]"]),
            ("[policy]\nTIMEOUT = 3", ["[policy.TIMEOUT]", "such as retries = 3"]),
            ("[policy]\nTIMOUT = 3", ["[policy.TIMOUT]", "'TIMEOUT'"]),
            ("[element]\nouter_exceptions = 'no class'", ["outer_exceptions", "dotted path"]),
            ("[element]\nouter_exceptions = 3", ["outer_exceptions", "list of texts"]),
            ("[plan]\ntrusted_roots = ['code']", ["'code'", "absolute path"]),
            ("[element]\nlease_s = '60'", ["lease_s", "number, without quotes"]),
            ("nights = 3", ["[nights.NAME] should be a section"]),
            ("[nights.'a b']\ntasks = ['a']", ["[nights.a b]", "letters, digits, - and _"]),
        ],
    )
    def test_names_file_key_and_the_right_one(
        self, tmp_path: Path, text: str, words: list[str]
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, text)
        for word in [str(tmp_path / "astra.toml"), *words]:
            assert word in str(caught.value)

    def test_a_file_that_is_not_utf8_is_refused_with_the_line(self, tmp_path: Path) -> None:
        (tmp_path / "astra.toml").write_bytes(b"[plan]\nlimit = 3\n# caf\xe9\n")
        with pytest.raises(ConfigError, match="line 3: not UTF-8"):
            load(tmp_path)

    def test_a_folder_of_that_name_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "astra.toml").mkdir()
        with pytest.raises(ConfigError, match="is a folder"):
            load(tmp_path)

    def test_a_named_file_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"named by ASTRA_CONFIG, does not exist"):
            load(tmp_path, ASTRA_CONFIG="no.toml")
        with pytest.raises(ConfigError, match=r"named by --config, does not exist"):
            load(tmp_path, path="no.toml")

    def test_a_place_that_cannot_be_examined(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot be examined.*too long"):
            load(tmp_path, XDG_CONFIG_HOME=f"/{'x' * 300}")

    def test_a_file_that_cannot_be_read_is_named(self) -> None:
        """Root reads everything, and so becomes somebody else meanwhile."""
        user = os.geteuid()
        with folder() as place:
            file = write(place, "[plan]")
            file.chmod(0)
            os.seteuid(user or NOBODY)
            try:
                with pytest.raises(ConfigError, match=rf"{file} cannot be read: Permission"):
                    settings.load(file)
            finally:
                os.seteuid(user)

    def test_a_secret_in_the_wrong_place_is_not_repeated(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, '[database]\nurl = ["postgresql://me:geheim@h/db"]')
        assert "geheim" not in str(caught.value)


class TestSecrets:
    @pytest.mark.parametrize(
        "url, shown",
        [
            ("postgresql://me:geheim@h/db", "postgresql://me:***@h/db"),
            ("postgresql://:geheim@h/db", "postgresql://:***@h/db"),
            ("postgresql://me:ge/h?e#im@h/db", "postgresql://me:***@h/db"),
            ("postgresql://me:ge@him@h:5/db?a=b", "postgresql://me:***@h:5/db?a=b"),
            ("postgresql:///db?user=me&password=geheim", "postgresql:///db?user=me&password=***"),
            ("postgresql:///db?passw%6Frd=geheim", "postgresql:///db?passw%6Frd=***"),
            ("postgresql:///db?sslPassword=geheim", "postgresql:///db?sslPassword=***"),
            ("host=h password=geheim user=me", "host=h password=*** user=me"),
            (r"host=h password='ge\'h eim' user=me", "host=h password=*** user=me"),
        ],
    )
    def test_hidden_in_every_form(self, url: str, shown: str) -> None:
        assert secrets.hide_password(url) == shown
        assert secrets.has_password(url)

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql:///db",
            "postgresql://me@h:5432/db?options=a@b",
            "postgresql://h:5432/db?user=me@site",
            "postgresql://me@[::1]:5432/db",
            "sqlite:////data/a@b:c.db",
            "host=h user=me",
        ],
    )
    def test_a_text_without_a_password_is_unchanged(self, url: str) -> None:
        assert secrets.hide_password(url) == url
        assert not secrets.has_password(url)

    def test_passwords_are_hidden_inside_a_traceback(self) -> None:
        text = 'connect("postgresql://me:geheim@h/db")\nat me@site.org: password=geheim'
        assert "geheim" not in secrets.hide_password(text)
        assert "me@site.org" in secrets.hide_password(text)

    @given(st.text(st.characters(min_codepoint=33, exclude_categories=["C", "Z"]), min_size=1))
    def test_no_password_gets_through(self, password: str) -> None:
        secret = f"<{password}>"
        assert secret not in secrets.hide_password(f"postgresql://me:{secret}@host/db")

    def test_shown_settings_hide_secrets_and_name_their_source(self, tmp_path: Path) -> None:
        found = load(
            tmp_path,
            '[profiles.a]\npartition = "p"\nsetup = ["export MY_TOKEN=geheim", "true"]\n'
            'requeue = true\nmail_type = "FAIL,END"\n',
            ASTRA_DATABASE_URL="postgresql://me:geheim@h/db",
        )
        rows = {key: (value, source) for key, value, source in found.rows()}
        assert rows["database.url"] == ("postgresql://me:***@h/db", "ASTRA_DATABASE_URL")
        assert rows["profiles.a.partition"] == ("p", str(tmp_path / "astra.toml"))
        assert rows["profiles.a.setup"][0] == "export MY_TOKEN=***; true"
        assert rows["profiles.a.requeue"][0] == "true"
        assert rows["plan.limit"] == ("1000", "default")
        assert set(settings._KEYS) <= set(rows)
        assert "geheim" not in str(found.rows())


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4300 digits"):
        load(tmp_path, f"[plan]\nlimit = {'9' * 5000}\n")
