"""Profiles: what is not known or out of range is refused with the key and what it may be."""

import pytest

from hexagent.core.errors import InvalidArgument
from hexagent.core.policy.profile import _RANGES, DEFAULT, Profile, parse_profile


def refusal(text: str) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as refused:
        parse_profile(text, "p.toml")
    assert refused.value.reason == "BAD_PROFILE"
    assert refused.value.message.startswith("p.toml: ")
    return refused.value


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    error = refusal("tenant_lag = 5")
    assert error.field == "tenant_lag"
    assert all(key in error.message for key in Profile._fields)


@pytest.mark.parametrize("key", Profile._fields)
def test_a_value_out_of_range_is_refused_with_the_range(key: str) -> None:
    low, high = _RANGES[key]
    for value in (f"{low - 1}", f"{high + 1}", "1.5", '"1"', "true"):
        error = refusal(f"{key} = {value}")
        assert error.field == key
        assert f"from {low} to {high}" in error.message
    for edge in (low, high):
        assert getattr(parse_profile(f"{key} = {edge}", "p.toml"), key) == edge


def test_what_is_not_toml_is_refused_and_what_is_left_out_is_the_default() -> None:
    assert "not TOML" in refusal("tenant_lag_us =").message
    assert parse_profile("", "p.toml") == DEFAULT
