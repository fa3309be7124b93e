"""Profiles: options are checked before Slurm would refuse them, and inherited."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from astra.config import profiles as profile
from astra.config import shipped_files
from astra.config.settings import Config
from astra.errors import ConfigError


def having(path: str = "/site/astra.toml", **profiles: dict[str, Any]) -> Config:
    return Config(profiles={k.replace("_", "-"): v for k, v in profiles.items()}, path=Path(path))


def options(**keys: Any) -> dict[str, Any]:
    return dict(profile.get("a", having(a=keys)).options)


class TestShipped:
    @pytest.mark.parametrize("name", profile.names(Config()))
    def test_each_shipped_profile_is_valid_and_has_a_time_and_a_warning_signal(
        self, name: str
    ) -> None:
        found = profile.get(name, Config())
        assert found.options["time"] and found.options["signal"]
        assert profile.directives(found)

    def test_general_where_none_is_asked_for(self) -> None:
        assert profile.get(None, Config()).name == "general"
        assert profile.get(None, having(default={"time": 5})).name == "default"

    def test_a_users_profile_precedes_a_shipped_one_of_its_name_and_may_extend_it(self) -> None:
        found = profile.get("general", having(general={"extends": "general", "mem": "9G"}))
        assert found.options["mem"] == "9G"
        assert found.options["time"] == "04:00:00"

    def test_preemptible_is_warned_in_the_batch_shell(self) -> None:
        assert str(profile.get("preemptible", Config()).options["signal"]).startswith("B:")


class TestInheritance:
    def test_nearest_wins_and_false_takes_out(self) -> None:
        config = having(
            a={"extends": "b", "time": 5, "requeue": False},
            b={"extends": "c", "time": 6, "qos": "q"},
            c={"requeue": True, "mem": 100, "setup": ["x"], "throttle": 3},
        )
        found = profile.get("a", config)
        assert found.options == {"mem": 100, "time": 5, "qos": "q"}
        assert (found.setup, found.throttle) == (("x",), 3)

    @pytest.mark.parametrize("config", [having(a={"extends": "b"}, b={"extends": "a"})])
    def test_a_circle_is_shown(self, config: Config) -> None:
        with pytest.raises(ConfigError, match="a -> b -> a"):
            profile.get("a", config)

    def test_a_profile_that_extends_itself_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"extends 'a': no profile 'a'|circle"):
            profile.get("a", having(a={"extends": "a"}))

    def test_an_unknown_profile_is_refused_with_the_nearest_name(self) -> None:
        with pytest.raises(ConfigError, match=r"no profile 'genral'. Did you mean 'general'"):
            profile.get("genral", Config())
        with pytest.raises(ConfigError, match=r"astra.toml: \[profiles.a\] extends 'x'"):
            profile.get("a", having(a={"extends": "x"}))

    def test_options_take_precedence_over_the_profile(self) -> None:
        found = profile.get("general", Config()).with_options(time="5", mem=False, throttle=2)
        assert found.options["time"] == "5"
        assert "mem" not in found.options
        assert found.throttle == 2
        with pytest.raises(ConfigError, match="profile 'general' with the given options: tiem"):
            found.with_options(tiem=5)


class TestValues:
    @pytest.mark.parametrize(
        "keys, lines",
        [
            ({"cpus_per_task": 4}, [("cpus-per-task", "4")]),
            ({"exclusive": True}, [("exclusive", None)]),
            ({"exclusive": "user"}, [("exclusive", "user")]),
            ({"contiguous": False}, []),
            ({"partition": "a,b"}, [("partition", "a,b")]),
            ({"comment": "a b"}, [("comment", "a b")]),
            ({"nice": 5}, [("nice", "5")]),
        ],
    )
    def test_values_become_directives(self, keys: dict[str, Any], lines: list[Any]) -> None:
        assert profile.directives(profile.get("a", having(a=keys))) == lines

    @pytest.mark.parametrize(
        "time",
        [
            0,
            90,
            "90",
            "90:30",
            "02:00:00",
            "100:00:00",
            "1-12",
            "1-12:30",
            "1-12:30:00",
            "UNLIMITED",
        ],
    )
    def test_times_are_accepted_in_all_forms_of_slurm(self, time: Any) -> None:
        assert options(time=time) == {"time": time}

    @pytest.mark.parametrize(
        "time, instead",
        [
            ("2h", "minutes as 120"),
            ("1:2:3:4", "02:00:00"),
            ("1.5", "02:00:00"),
            (1.5, "02:00:00"),
            ("soon", "02:00:00"),
        ],
    )
    def test_times_that_are_none(self, time: Any, instead: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(instead)):
            options(time=time)

    @pytest.mark.parametrize(
        "time, warning, is_kept",
        [
            ("5", "B:USR1@120", True), ("4", "B:USR1@120", False), ("3", "B:USR1", True),
            ("2", "B:USR1", False), ("0", "B:USR1@120", True), ("UNLIMITED", "B:USR1", True),
        ],
    )  # fmt: skip
    def test_a_warning_is_left_out_that_would_come_as_the_element_begins(
        self, time: str, warning: str, is_kept: bool
    ) -> None:
        """Without a time, Slurm sends it a minute before the limit; a limit of 0 is none."""
        chosen = profile.choose_profile("general", {"time": time, "signal": warning})
        assert chosen.options.get("signal") == (warning if is_kept else None)

    @pytest.mark.parametrize("mem", [0, 4000, "4000", "8G", "8g", "8GB", "500M", "1T", "10K"])
    def test_sizes_of_memory_are_accepted(self, mem: Any) -> None:
        assert options(mem=mem)

    @pytest.mark.parametrize("mem", ["1.5G", "8 G", "8Gi", "8X", -1, "lots"])
    def test_an_invalid_size_of_memory_is_refused(self, mem: Any) -> None:
        with pytest.raises(ConfigError, match='write "8G"'):
            options(mem=mem)

    @pytest.mark.parametrize("signal", ["USR1", "USR1@60", "10@30", "R:USR1@60"])
    def test_a_signal_that_would_reach_nobody(self, signal: str) -> None:
        with pytest.raises(ConfigError, match='write "B:'):
            options(signal=signal)
        assert options(signal="B:USR1@60") and options(signal="RB:10")

    @pytest.mark.parametrize(
        "keys, words",
        [
            ({"partitoin": "x"}, "Did you mean 'partition'"),
            ({"cpus-per-task": 3}, "snake case: cpus_per_task"),
            ({"array": "1-5"}, "throttle"),
            ({"job_name": "x"}, "finds lost submissions"),
            ({"output": "x"}, "log of its own"),
            ({"wrap": "x"}, "setup"),
            ({"contiguous": "yes"}, "true or false"),
            ({"partition": True}, "requires a value"),
            ({"partition": ""}, "not empty"),
            ({"comment": "a\nb"}, "one line"),
            ({"nodelist": ["n1", "n2"]}, "should be a text, as sbatch takes it"),
            ({"clusters": "a,b"}, "name one cluster"),
            ({"partition": {"a": 1}}, "should be a text"),
            ({"throttle": 0}, "at least 1"),
            ({"pull": 1}, "true or false"),
            ({"throttle": "5"}, "whole number"),
            ({"pages_per_element": True}, "whole number"),
            ({"setup": [1]}, "list of shell lines"),
            ({"setup": ["a\0"]}, "NUL"),
            ({"template": 5}, "name of a template"),
            ({"extends": ["a", "b"]}, "one profile"),
        ],
    )
    def test_refused_with_the_reason(self, keys: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(words)) as caught:
            options(**keys)
        assert "/site/astra.toml" in str(caught.value)
        assert "a]" in str(caught.value)

    def test_an_option_extends_no_profile(self) -> None:
        with pytest.raises(ConfigError, match="belongs in a profile of the configuration"):
            profile.choose_profile("general", {"extends": "debug"})

    def test_pages_that_are_taken_are_not_fixed_below_either(self) -> None:
        below = {"pages_per_element": 3}
        found = profile.get("a", having(a={"extends": "b", "pull": True}, b=below))
        assert (found.pull, found.pages_per_element) == (True, 1)

    def test_setup_may_be_one_line(self) -> None:
        assert profile.get("a", having(a={"setup": "module load x"})).setup == ("module load x",)


@pytest.mark.skipif(not shutil.which("sbatch"), reason="no sbatch here")
def test_every_option_that_sbatch_names_is_known(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"  # sbatch reads one before it gives help
    conf.write_text("ClusterName=none\nSlurmctldHost=localhost\n")
    text = subprocess.run(
        ["sbatch", "--help"],
        env={**os.environ, "SLURM_CONF": str(conf)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    named = {name.replace("-", "_") for name in re.findall(r"^.{0,8}--([a-z][a-z-]+)", text, re.M)}
    assert named - profile.OPTIONS - set(profile.REFUSED) == set()
    assert not profile.OPTIONS & set(profile.REFUSED)


def test_shipped_folders_are_found() -> None:
    assert (shipped_files.config_dir() / "astra.toml").is_file()
    assert (shipped_files.templates_dir() / "element.sh.j2").is_file()


def test_a_broken_installation_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped_files, "_PACKAGE", tmp_path / "astra")
    with pytest.raises(ConfigError, match="install it again"):
        shipped_files.templates_dir()
