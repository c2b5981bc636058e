"""Settings: read once, checked, documented; and the log lines they shape."""

import json
import logging
from pathlib import Path
from typing import ClassVar

import pytest

from hexagent.core.errors import InvalidArgument
from hexagent.runtime.logs import FIELD_CHARS_MAX, fields, set_up_logs
from hexagent.runtime.settings import Settings, setting, settings_table
from hexagent.runtime.streams import StreamLimits


class ProbeSettings(Settings):
    service: ClassVar[str] = "probe"
    probe_period_s: float = setting(0.5, "s", "Between two probes.", gt=0)


def test_defaults_come_from_the_code() -> None:
    settings = ProbeSettings.read({})
    assert settings.probe_period_s == 0.5
    assert settings.stream_limits() == StreamLimits()
    assert settings.bus_options().name == "probe"
    assert settings.advertised(99) == "127.0.0.1:99"


def test_overrides_come_before_the_environment() -> None:
    environ = {
        "HEXAGENT_PROBE_PERIOD_S": "2",
        "HEXAGENT_LISTEN_PORT": "77",
        "HEXAGENT_READY_FILE": "",
        "HEXAGENT_X": "1",
    }
    settings = ProbeSettings.read(environ, listen_port=78)
    assert settings.probe_period_s == 2.0
    assert settings.listen_port == 78
    assert settings.ready_file is None
    assert ProbeSettings.read({"HEXAGENT_READY_FILE": "/x/y"}).ready_file == Path("/x/y")


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(InvalidArgument) as refused:
        ProbeSettings.read({"HEXAGENT_PROBE_PERIOD_S": "-1", "HEXAGENT_LISTEN_PORT": "many"})
    assert refused.value.reason == "BAD_SETTINGS"
    assert set(refused.value.details) == {"HEXAGENT_PROBE_PERIOD_S", "HEXAGENT_LISTEN_PORT"}


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        ProbeSettings.read({}, probe_period=1)


def test_every_setting_is_documented() -> None:
    table = settings_table(ProbeSettings)
    assert "| `HEXAGENT_PROBE_PERIOD_S` | `0.5` | s | Between two probes. |" in table
    assert "HEXAGENT_NATS_URL" in table
    assert settings_table(ProbeSettings, own_only=True).count("\n") == 3
    for name, field in ProbeSettings.model_fields.items():
        assert field.description, name
        if name.endswith(("_s", "_bytes")):
            assert isinstance(field.json_schema_extra, dict)
            assert field.json_schema_extra["unit"] in ("s", "bytes"), name


@pytest.fixture
def _root_logger() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_root_logger")
def test_a_log_record_is_one_bounded_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("probe", "p-1", "INFO", "json")
    log = logging.getLogger("hexagent.test")
    log.debug("hidden")
    try:
        raise ValueError("why\nso")
    except ValueError:
        log.exception("failed", extra=fields(call="w/a", tokens=3, text="x" * 5000))

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    record = json.loads(lines[0])
    assert record["service"] == "probe"
    assert record["instance"] == "p-1"
    assert record["fields"]["tokens"] == 3
    assert len(record["fields"]["text"]) <= FIELD_CHARS_MAX
    assert record["traceback"].endswith("ValueError: why\nso")
