"""What the gateway reads from its environment."""

from typing import ClassVar

from hexagent.runtime.settings import Settings, setting
from hexagent_services.gateway.sessions import SessionLimits


class GatewaySettings(Settings):
    """`listen_host` and `listen_port` are those of the gRPC health service; clients speak HTTP."""

    service: ClassVar[str] = "gateway"

    http_host: str = setting("127.0.0.1", "", "Interface the HTTP server listens on.", min_length=1)
    http_port: int = setting(0, "", "Its port; 0 takes a free one.", ge=0, le=65535)
    tracker_address: str = setting("127.0.0.1:7400", "", "host:port of the dag-tracker.", min_length=3)
    tracker_patience_s: float = setting(15.0, "s", "Repeating a request while the tracker is away.", ge=0, le=600)
    cluster_wait_s: float = setting(60.0, "s", "How long a start waits for the cluster record.", gt=0, le=3600)

    default_model: str = setting("", "", "Model of requests that name none; empty: the cluster's only one.")
    default_max_tokens: int = setting(1024, "tokens", "Longest output of requests that set none.", ge=1, le=2**20)

    body_bytes_max: int = setting(8 * 2**20, "bytes", "Larger request bodies are refused with 413.", ge=1024, le=2**28)
    requests_max: int = setting(1024, "requests", "In progress at a time; further ones get 429.", ge=1, le=2**16)
    connections_max: int = setting(4096, "connections", "Open at a time; further ones get 503.", ge=1, le=2**17)
    request_timeout_s: float = setting(3600.0, "s", "A call that takes longer is cancelled: 504.", gt=0, le=86400)
    stream_headers_s: float = setting(
        10.0, "s", "A stream without a token by then begins, and what fails later comes as an event.", ge=0, le=600
    )
    keep_alive_s: float = setting(15.0, "s", "A silent stream gets a comment this often.", gt=0, le=600)
    retry_after_s: int = setting(1, "s", "`Retry-After` where the cause of a 429 or 503 names no time.", ge=1, le=3600)

    sessions_max: int = setting(2048, "sessions", "Known at a time; the longest idle one is finished first.", ge=1)
    session_idle_s: float = setting(600.0, "s", "A session without calls for so long is finished.", gt=0, le=86400)
    session_outputs_max: int = setting(256, "outputs", "Remembered of a session, to be recognised in prompts.", ge=0)

    def session_limits(self) -> SessionLimits:
        """Bounds of the sessions."""
        return SessionLimits(self.sessions_max, self.session_idle_s, self.session_outputs_max)
