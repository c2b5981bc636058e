"""A server that answers as `trtllm-serve` does, over the fake engine: `python -m tests.fakes.trtllm_serve MODEL ...`.

As the real one: unknown fields are refused; every failure of a request is a 400; a context-only request has its
answer at once, a generation-only one says the first token again; clients that leave are looked for once a second;
reading statistics waits for more of them, and takes them away; `/health` knows only that the process lives.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hexagent_services.worker_agent.engine.trtllm_serve.process import configuration
from tests.fakes.tensorrt_llm import llmapi
from tests.fakes.tensorrt_llm.llm import LLM, GenerationResult
from tests.fakes.tensorrt_llm.lora_helper import LoraConfig
from tests.fakes.tensorrt_llm.model import END_ID

QUIET_S = 0.2  # how long a reading of statistics waits for one more; 2 s in the real server
LOOK_S = 1.0  # between two looks whether a client has left
GROUPS = {
    "kv_cache_config": llmapi.KvCacheConfig,
    "cache_transceiver_config": llmapi.CacheTransceiverConfig,
    "scheduler_config": llmapi.SchedulerConfig,
    "lora_config": LoraConfig,
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DisaggregatedParams(Strict):
    request_type: str
    first_gen_tokens: list[int] | None = None
    ctx_request_id: int | None = None
    encoded_opaque_state: str | None = None
    draft_tokens: list[int] | None = None


class LoRARequest(Strict):
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class StreamOptions(Strict):
    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False


class CompletionRequest(Strict):
    model: str
    prompt: list[int] | str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    detokenize: bool = True
    add_special_tokens: bool = True
    response_format: dict[str, Any] | None = None
    disaggregated_params: DisaggregatedParams | None = None
    lora_request: LoRARequest | None = None


class Server:
    def __init__(self, model: str, llm: LLM, auth_key: str, metrics_kept: int, guided: bool) -> None:
        self._model = model
        self.llm = llm
        self._auth_key = auth_key
        self._guided = guided
        self.formats: list[dict[str, Any]] = []  # that outputs were held to
        self._metrics: deque[dict[str, Any]] = deque(maxlen=metrics_kept)
        self._watching: set[asyncio.Task[None]] = set()
        self.cancelled = 0

    def app(self) -> Starlette:
        get: dict[str, Callable[[Request], Any]] = {
            "/health": self.health, "/health_generate": self.health_generate, "/version": self.version,
            "/v1/models": self.models, "/openapi.json": self.openapi, "/metrics": self.metrics,
            "/perf_metrics": self.perf_metrics, "/fake": self.fake,
        }  # fmt: skip
        post = {"/v1/completions": self.completions, "/kv_cache_events": self.kv_cache_events, "/fake": self.set_fault}
        routes = [Route(path, work, methods=["GET"]) for path, work in get.items()]
        return Starlette(routes=routes + [Route(path, work, methods=["POST"]) for path, work in post.items()])

    async def health(self, request: Request) -> Response:
        return Response()

    async def health_generate(self, request: Request) -> Response:
        sampling = llmapi.SamplingParams(max_tokens=1, end_id=END_ID)
        await self.llm.generate_async({"prompt_token_ids": [104, 105]}, sampling_params=sampling)
        return Response()

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": "1.2.1"})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": Path(self._model).name, "object": "model"}]})

    async def openapi(self, request: Request) -> Response:
        kinds = (CompletionRequest, DisaggregatedParams)
        return JSONResponse({"components": {"schemas": {kind.__name__: kind.model_json_schema() for kind in kinds}}})

    async def metrics(self, request: Request) -> Response:
        return JSONResponse(await self._drained(self.llm.get_stats_async))

    async def kv_cache_events(self, request: Request) -> Response:
        return JSONResponse(await self._drained(self.llm.get_kv_cache_events_async))

    async def _drained(self, read: Callable[..., AsyncIterator[dict[str, Any]]]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        while True:
            found = [item async for item in read(timeout=2)]
            items += found
            if not found:
                return items
            await asyncio.sleep(QUIET_S)

    async def perf_metrics(self, request: Request) -> Response:
        taken = list(self._metrics)
        self._metrics.clear()
        return JSONResponse(taken)

    async def fake(self, request: Request) -> Response:
        """For tests: what the engine holds."""
        return JSONResponse(
            {
                "used_blocks": self.llm.blocks.used,
                "pinned": len(self.llm.transceiver.pinned),
                "cancelled": self.cancelled,
                "formats": self.formats,
                "interrupted_transfers": self.llm.interrupted_transfers,
            }
        )

    async def set_fault(self, request: Request) -> Response:
        for name, value in (await request.json()).items():
            setattr(self.llm.faults, name, value)
        return Response()

    async def completions(self, request: Request) -> Response:
        try:
            body = CompletionRequest.model_validate(await request.json())
            self._authenticate(body.disaggregated_params, request)
            result = self._submit(body)
        except (ValidationError, ValueError, RuntimeError) as error:
            return _refusal(str(error))
        watch = asyncio.create_task(self._look(request, result))
        self._watching.add(watch)
        watch.add_done_callback(self._watching.discard)
        if body.stream:
            return StreamingResponse(self._stream(body, result), media_type="text/event-stream")
        try:
            await result
        except Exception as error:
            return _refusal(str(error))
        self._ended(result)
        output = result.outputs[0]
        choice = {"index": 0, "text": "", "token_ids": output.token_ids, "finish_reason": output.finish_reason}
        answer: dict[str, Any] = {"model": body.model, "choices": [choice], "usage": _usage(result)}
        if output.disaggregated_params is not None:
            choice["disaggregated_params"] = _shown(output.disaggregated_params)
            answer["prompt_token_ids"] = result.prompt_ids
        return JSONResponse(answer)

    def _authenticate(self, params: DisaggregatedParams | None, request: Request) -> None:
        if params is None or params.encoded_opaque_state is None or not self._auth_key:
            return
        signed = {"ctx_info_endpoint": None, "encoded_opaque_state": params.encoded_opaque_state}
        text = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
        wanted = f"sha256={hmac.new(self._auth_key.encode(), text, hashlib.sha256).hexdigest()}"
        if request.headers.get("x-trtllm-disagg-auth") != wanted:
            raise ValueError("Invalid internal disaggregated request authentication")

    def _submit(self, body: CompletionRequest) -> GenerationResult:
        assert isinstance(body.prompt, list)
        assert not body.detokenize, "the fake speaks token ids only"
        sampling = llmapi.SamplingParams(max_tokens=body.max_tokens, end_id=END_ID)
        if body.response_format is not None and self._guided:  # without a backend it is passed over in silence
            self.formats.append(body.response_format)
        params = None
        if body.disaggregated_params is not None:
            given = body.disaggregated_params.model_dump()
            state = given.pop("encoded_opaque_state")
            given["opaque_state"] = None if state is None else base64.b64decode(state)
            if given["request_type"] == "context_only" and body.stream:
                raise ValueError("a context-only request cannot be streamed")
            params = llmapi.DisaggregatedParams(**given)
        return self.llm.generate_async(
            {"prompt_token_ids": body.prompt},
            sampling_params=sampling,
            streaming=bool(body.stream),
            disaggregated_params=params,
            lora_request=body.lora_request,
        )

    async def _look(self, request: Request, result: GenerationResult) -> None:
        while not await request.is_disconnected():
            if result.finished:
                return
            await asyncio.sleep(LOOK_S)
        if not result.finished:
            self.cancelled += 1
            result.abort()

    async def _stream(self, body: CompletionRequest, result: GenerationResult) -> AsyncIterator[str]:
        """An error ends the connection in the middle, as an exception in a generator does."""
        said, usage = 0, bool(body.stream_options and body.stream_options.continuous_usage_stats)
        async for _ in result:
            output = result.outputs[0]
            choice = {
                "index": 0,
                "text": "",
                "token_ids": output.token_ids[said:],
                "finish_reason": output.finish_reason,
            }
            said = len(output.token_ids)
            chunk = {"model": body.model, "choices": [choice], "usage": _usage(result) if usage else None}
            yield f"data: {json.dumps(chunk)}\n\n"
        yield f"data: {json.dumps({'model': body.model, 'choices': [], 'usage': _usage(result)})}\n\n"
        self._ended(result)
        yield "data: [DONE]\n\n"

    def _ended(self, result: GenerationResult) -> None:
        output = result.outputs[0]
        times = output.request_perf_metrics.timing_metrics
        names = ("arrival_time", "first_scheduled_time", "first_token_time")
        timing = {name: getattr(times, name).total_seconds() for name in names}
        if times.kv_cache_size:
            timing["kv_cache_size"] = times.kv_cache_size
            for name in ("kv_cache_transfer_start", "kv_cache_transfer_end"):
                timing[name] = getattr(times, name).total_seconds()
        params = output.disaggregated_params or result.params
        item: dict[str, Any] = {"request_id": result.request_id, "perf_metrics": {"timing_metrics": timing}}
        if params is not None:
            item["ctx_request_id"] = params.ctx_request_id
        self._metrics.append(item)


def _usage(result: GenerationResult) -> dict[str, Any]:
    prompt, output = len(result.prompt_ids), len(result.outputs[0].token_ids)
    details = {"cached_tokens": result.cached_tokens}
    return {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details}


def _shown(params: Any) -> dict[str, Any]:
    fields = {name: getattr(params, name) for name in DisaggregatedParams.model_fields if hasattr(params, name)}
    return {**fields, "encoded_opaque_state": base64.b64encode(params.opaque_state).decode()}


def _refusal(message: str) -> Response:
    return JSONResponse({"object": "error", "message": message, "type": "BadRequestError", "code": 400}, 400)


def server_of(model: str, config: dict[str, Any], auth_key: str) -> Server:
    config = dict(config)
    kept = config.pop("perf_metrics_max_requests", 0)
    guided = bool(config.pop("guided_decoding_backend", ""))
    arguments = {name: GROUPS[name](**value) if name in GROUPS else value for name, value in config.items()}
    return Server(model, LLM(model="fake", **arguments), auth_key, kept, guided)


class InThisProcess:
    """A `Launcher` whose server runs on the test's own event loop: as real over HTTP, without a start of Python."""

    def __init__(self, auth_key: str = "") -> None:
        self._auth_key = auth_key
        self._serving: asyncio.Task[None] | None = None

    async def start(self, order: Mapping[str, Any]) -> str:
        server = server_of(order["model"], configuration(order), self._auth_key)
        listening = socket.create_server(("127.0.0.1", 0))
        web = uvicorn.Server(uvicorn.Config(server.app(), log_level="critical", lifespan="off"))
        self._serving = asyncio.create_task(web.serve(sockets=[listening]))
        self._serving.add_done_callback(lambda _: server.llm.shutdown())
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    async def ended(self) -> str:
        assert self._serving is not None
        await asyncio.wait((self._serving,))
        return "it has ended"

    async def stop(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait((self._serving,))

    async def kill(self) -> None:
        await self.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--backend", default="pytorch")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--auth-key", default="")
    options = parser.parse_args()
    server = server_of(options.model, json.loads(options.config.read_text(encoding="utf-8")), options.auth_key)
    uvicorn.run(server.app(), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
