"""The HTTP API of `trtllm-serve`, as far as an agent uses it."""

import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import httpx

from hexagent.core.errors import Unavailable

ANSWER_S: Final = 10.0  # wall time for what no request's work is behind
TAKEN_BYTES_MAX: Final = 4 << 20  # of statistics: about 4,000 iterations
GENERATE_S: Final = 120.0  # wall time for a server that has just loaded to generate its first token
AUTH_HEADER: Final = "x-trtllm-disagg-auth"
# Set for every request; of `SamplingParams` the server has its own.
_OWN_FIELDS: Final = ("end_id", "pad_id")


class Refused(Exception):
    """The server will not run the request; nothing of it is held."""


class Chunk(NamedTuple):
    """A piece of an answer."""

    ids: tuple[int, ...]
    finish: str  # "" = more follows, or the request was cancelled
    cached_tokens: int
    state: Mapping[str, Any] | None = None  # of a context-only answer


class ServeApi:
    """One server. `auth_key` is the one its hand-offs are signed with; "" = it wants none."""

    def __init__(self, url: str, auth_key: str) -> None:
        self.url: Final = url
        self._auth_key = auth_key.encode()
        # No limits: how much the engine gets at a time is the agent's decision, and every request is a connection.
        self._http = httpx.AsyncClient(
            base_url=url, timeout=None, limits=httpx.Limits(max_connections=None), trust_env=False
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def generates(self) -> bool:
        """Whether it can generate a token: `/health` alone answers 200 while nothing moves."""
        try:
            return (await self._http.get("/health_generate", timeout=GENERATE_S)).status_code == 200
        except httpx.HTTPError:
            return False

    async def alive(self) -> bool:
        """Whether the process is there and does not call itself broken; one that is only slow does not."""
        try:
            return (await self._http.get("/health", timeout=ANSWER_S)).status_code == 200
        except httpx.TimeoutException:
            return True
        except httpx.HTTPError:
            return False

    async def model(self) -> str:
        """The name that requests call its model by."""
        return str((await self._json("GET", "/v1/models"))["data"][0]["id"])

    async def version(self) -> str:
        return str((await self._json("GET", "/version"))["version"])

    async def fields(self, schema: str) -> frozenset[str]:
        """The fields of a kind of message, as the server describes itself; it refuses unknown ones."""
        described = await self._json("GET", "/openapi.json")
        found = described["components"]["schemas"].get(schema, {})
        return frozenset(found.get("properties", {}))

    async def iterations(self) -> list[dict[str, Any]]:
        """Statistics since the last reading, which are then gone. `Unavailable`."""
        return await self._taken("GET", "/metrics")

    async def kv_events(self) -> list[dict[str, Any]]:
        """Events since the last reading, which are then gone. `Unavailable`, also before the server's first request."""
        return await self._taken("POST", "/kv_cache_events")

    async def perf_metrics(self) -> list[dict[str, Any]]:
        """Of requests that have ended since the last reading; they are then gone."""
        found: list[dict[str, Any]] = await self._json("GET", "/perf_metrics")
        return found

    async def whole(self, body: Mapping[str, Any]) -> Chunk:
        """An answer at once. `Refused`, `httpx.HTTPError`."""
        response = await self._http.post("/v1/completions", json=body, headers=self._headers(body))
        _check(response.status_code, response.content)
        return _chunk(response.json())

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """An answer as it comes; closing it is how a request is cancelled. `Refused`, `httpx.HTTPError`."""
        async with self._http.stream("POST", "/v1/completions", json=body, headers=self._headers(body)) as response:
            if response.status_code != 200:
                _check(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: ") and (answer := json.loads(line[6:]))["choices"]:
                    yield _chunk(answer)
        raise httpx.RemoteProtocolError("the answer broke off")

    async def _taken(self, method: str, path: str) -> list[dict[str, Any]]:
        """A reading ends when the engine has been quiet for 2 s, so it may last as long as the load does.

        Leaving it would not end it at the server, and the next one would compete with it. What has come together by
        then may be more than is worth reading.
        """
        content = b""
        try:
            async with self._http.stream(method, path) as response:
                response.raise_for_status()
                async for part in response.aiter_bytes():
                    if len(content) <= TAKEN_BYTES_MAX:
                        content += part
        except httpx.HTTPError as error:
            raise Unavailable(f"{self.url}{path}: {error}", reason="ENGINE_SERVER_FAILED") from error
        if len(content) > TAKEN_BYTES_MAX:
            return []
        try:
            return [json.loads(item) if isinstance(item, str) else item for item in json.loads(content)]
        except (ValueError, TypeError) as error:
            raise Unavailable(f"{self.url}{path}: no list of objects", reason="ENGINE_SERVER_FAILED") from error

    async def _json(self, method: str, path: str) -> Any:
        """`Unavailable` (ENGINE_SERVER_FAILED) where the server has no answer."""
        try:
            response = await self._http.request(method, path, timeout=ANSWER_S)
            response.raise_for_status()
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"{self.url}{path}: {error}", reason="ENGINE_SERVER_FAILED") from error

    def _headers(self, body: Mapping[str, Any]) -> dict[str, str]:
        """Newer servers take hand-offs only when whoever forwards them has signed them."""
        params = body.get("disaggregated_params") or {}
        endpoint = params.get("ctx_info_endpoint")
        signed = {
            "ctx_info_endpoint": endpoint[0] if isinstance(endpoint, list) else endpoint,
            "encoded_opaque_state": params.get("encoded_opaque_state"),
        }
        if not self._auth_key or not any(signed.values()):
            return {}
        text = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
        return {AUTH_HEADER: f"sha256={hmac.new(self._auth_key, text, hashlib.sha256).hexdigest()}"}


def completion(model: str, ids: Sequence[int], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request that takes token ids and gives token ids. `sampling` as `SamplingParams` takes it."""
    body = {name: value for name, value in sampling.items() if name not in _OWN_FIELDS}
    if not sampling["ignore_eos"]:
        body["stop_token_ids"] = [sampling["end_id"], *sampling.get("stop_token_ids", ())]
    return {**body, "model": model, "prompt": list(ids), "detokenize": False, "add_special_tokens": False}


def state_of(params: Mapping[str, Any]) -> str:
    """What a context-only answer says of its hand-off, in the form in which engine hosts pass it on."""
    state = {name: value for name, value in params.items() if value is not None and name != "request_type"}
    if "encoded_opaque_state" in state:
        state["opaque_state"] = {"base64": state.pop("encoded_opaque_state")}
    return json.dumps(state)


def params_of(state: str, known: frozenset[str]) -> dict[str, Any]:
    """A generation-only request's `disaggregated_params`. `Refused` where the server lacks a field of them."""
    params = json.loads(state)
    if "opaque_state" in params:
        params["encoded_opaque_state"] = params.pop("opaque_state")["base64"]
    unknown = sorted(set(params) - known)
    if unknown:
        raise Refused(f"the prefill side's version has fields that this server lacks: {', '.join(unknown)}")
    return {**params, "request_type": "generation_only"}


def _chunk(answer: Mapping[str, Any]) -> Chunk:
    choice = answer["choices"][0]
    cached = ((answer.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Chunk(
        tuple(choice.get("token_ids") or ()),
        choice.get("finish_reason") or "",
        cached,
        choice.get("disaggregated_params"),
    )


def _check(status: int, content: bytes) -> None:
    """`Refused` for what is the request's own fault, `httpx.HTTPError` for the rest."""
    if status == 200:
        return
    text = content.decode(errors="replace")[:500]
    if 400 <= status < 500:
        raise Refused(text)
    raise httpx.RemoteProtocolError(f"status {status}: {text}")
