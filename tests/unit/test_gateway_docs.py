"""What docs/gateway.md says about settings, fields and headers is what the code has."""

import pathlib

from hexagent.runtime.settings import settings_table
from hexagent_services.gateway.chat import IGNORED, ChatBody, HexagentOptions
from hexagent_services.gateway.identity import SCHEMAS
from hexagent_services.gateway.settings import GatewaySettings

DOCS = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")


def test_settings() -> None:
    assert settings_table(GatewaySettings, own_only=True) in DOCS


def test_fields() -> None:
    refused = {"logprobs", "modalities", "hexagent"}
    fields = {*ChatBody.model_fields, *HexagentOptions.model_fields, *IGNORED} - refused
    assert sorted(name for name in fields if f"`{name}`" not in DOCS) == []


def test_session_headers() -> None:
    headers = [header for schema in SCHEMAS for header in (*schema.session, *schema.parent)]
    assert [header for header in headers if f"`{header}`" not in DOCS.lower()] == []
