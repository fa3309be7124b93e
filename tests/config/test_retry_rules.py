"""Rules of retries in the configuration and in profiles."""

import pytest

from astra.config import settings
from astra.config.profiles import get
from astra.config.retry_rules import RULES, rules
from astra.config.settings import load, use
from astra.errors import ConfigError


def read(tmp_path, text):
    (tmp_path / "astra.toml").write_text(text)
    use(load())
    return settings.current()


def test_rules_of_the_configuration_precede_the_defaults_and_are_shown(tmp_path):
    found = read(
        tmp_path,
        "[policy]\nexclude_after = 5\n[policy.TIMEOUT]\nretries = 1\n"
        "[profiles.big.policy.TIMEOUT]\ntime_growth = 4\n"
        "[profiles.bigger]\nextends = 'big'\n[profiles.bigger.policy.FAILED]\nretries = 0\n",
    )
    made = rules(found.rules, get("bigger", found).policy)
    assert (made["TIMEOUT"].retries, made["TIMEOUT"].time_growth) == (1, 4)
    assert made["FAILED"].retries == 0 and made["NODE_FAIL"] == RULES["NODE_FAIL"]
    shown = {key: value for key, value, _ in found.rows()}
    assert shown["policy.TIMEOUT.retries"] == "1" and shown["policy.exclude_after"] == "5"


@pytest.mark.parametrize(
    "text, words",
    [
        ("[policy.TIMOUT]\nretries = 1", ["TIMOUT", "'TIMEOUT'"]),
        ("[policy.TIMEOUT]\nretry = 1", ["[policy.TIMEOUT] retry:", "'retries'"]),
        ("[policy.TIMEOUT]\nretries = -1", ["from 0"]),
        ("[policy.TIMEOUT]\nretries = true", ["whole number"]),
        ("[policy.TIMEOUT]\ntime_growth = 0.5", ["from 1 to 100"]),
        ("[policy.OUT_OF_MEMORY]\nmax_mem = 'much'", ['such as "64G"']),
        ("[policy.TIMEOUT]\nmax_time = '2h'", ["time limit"]),
        ("[policy]\nTIMEOUT = 3", ["TIMEOUT"]),
        ("[policy]\nexclude_aftr = 3", ["'exclude_after'"]),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert all(word in str(caught.value) for word in [*words, "astra.toml"])


def test_a_wrong_key_of_a_profile_is_named(tmp_path):
    found = read(tmp_path, "[profiles.x.policy.TIMEOUT]\nretrys = 1")
    with pytest.raises(ConfigError, match=r"\[profiles.x.policy.TIMEOUT\] retrys.*'retries'"):
        get("x", found)
