"""The HTTP API as one application: chat completions, models, health."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hexagent.core.errors import Unavailable
from hexagent_services.gateway.chat import Models
from hexagent_services.gateway.endpoint import ChatEndpoint
from hexagent_services.gateway.failures import Failures


class Pages:
    """The endpoints that answer at once. `tracker_ready` asks the tracker whether it serves."""

    def __init__(
        self,
        chat: ChatEndpoint,
        models: Models,
        failures: Failures,
        since_s: int,
        tracker_ready: Callable[[], Awaitable[bool]],
    ) -> None:
        self._chat = chat
        self._models = models
        self._failures = failures
        self._since_s = since_s  # wall time the models are there since
        self._tracker_ready = tracker_ready

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        return JSONResponse({"object": "list", "data": [self._shown(name) for name in self._models.known]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME"""
        name: str = request.path_params["model"]
        if name not in self._models.known:
            return self._failures.response(self._models.unknown(name), {})
        return JSONResponse(self._shown(name))

    async def healthz(self, request: Request) -> Response:
        """GET /healthz: the process runs."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """GET /readyz: requests can be answered."""
        if self._chat.stopping:
            return self._failures.response(Unavailable("the gateway stops", reason="GATEWAY_STOPPING"), {})
        if not await self._tracker_ready():
            error = Unavailable("the dag-tracker does not answer", reason="TRACKER_UNREACHABLE")
            return self._failures.response(error, {})
        return JSONResponse({"status": "ready", "requests": self._chat.requests})

    def _shown(self, name: str) -> dict[str, object]:
        shown = {"id": name, "object": "model", "created": self._since_s, "owned_by": "hexagent"}
        adapter = self._models.adapters.get(name)
        return shown if adapter is None else {**shown, "parent": adapter[0]}


def http_app(chat: ChatEndpoint, pages: Pages) -> Starlette:
    """The ASGI application."""
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", pages.models, methods=["GET"]),
            Route("/v1/models/{model:path}", pages.model, methods=["GET"]),
            Route("/healthz", pages.healthz, methods=["GET"]),
            Route("/readyz", pages.readyz, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _not_here, Exception: _broken},
    )


async def _not_here(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    body = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": body}, error.status_code, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    """A bug: its traceback goes to the log."""
    body = {"message": "internal error", "type": "server_error", "param": None, "code": "internal"}
    return JSONResponse({"error": body}, 500)
