"""One attempt on this agent, and the message that hands it from the prefill to the decode side."""

import asyncio

from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.core.scheduling.events import Phase
from hexagent.core.workflow.model import CallTimes, FinishReason
from hexagent.wire.cluster import link_to_proto
from hexagent.wire.worker import Attempt, attempt_to_proto
from hexagent.wire.workflow import times_from_proto, times_to_proto
from hexagent_services.worker_agent.engine.port import Engine, EngineRequest, Prefilled


class LiveAttempt:
    """One ticket on this agent."""

    __slots__ = (
        "bound",
        "decode_instance",
        "engine",
        "kv_ready",
        "phase",
        "request",
        "spec",
        "task",
        "ticket",
        "unbound",
    )

    def __init__(self, spec: Attempt, engine: Engine, phase: Phase) -> None:
        self.ticket = spec.ticket
        self.spec = spec
        self.engine = engine
        self.phase = phase
        self.decode_instance = ""
        self.request: EngineRequest | None = None
        self.unbound = ""  # why nobody decodes it yet, while it waits to be bound
        self.bound: asyncio.Queue[tuple[str, str]] = asyncio.Queue()  # (decode instance, its agent's address)
        self.kv_ready: asyncio.Future[pb.HandOffRequest] | None = None  # under push: the end of prefill is told
        self.task: asyncio.Task[None] | None = None

    @property
    def instance_id(self) -> str:
        return self.engine.spec.instance_id


def hand_off_request(
    attempt: LiveAttempt, request: EngineRequest, prefilled: Prefilled | None, decode_instance: str, address: str
) -> pb.HandOffRequest:
    """What the decode side is told; `address` is where it pulls the KV from. `prefilled` is None before its end."""
    offer = pb.HandOffRequest(
        attempt=attempt_to_proto(attempt.spec),
        source_instance=attempt.instance_id,
        source_address=address,
        target_instance=decode_instance,
        first_text=request.delivered_text,
        first_tokens=request.delivered_tokens + 1,
        prompt_tokens=attempt.spec.prompt_tokens,
        source_link=link_to_proto(attempt.engine.spec.link),
    )
    if prefilled is not None:
        times = CallTimes(
            dispatched_us=attempt.spec.dispatched_us,
            prefill_start_us=prefilled.started_us,
            prefill_end_us=prefilled.ended_us,
            first_token_us=prefilled.ended_us,
        )
        offer.times.CopyFrom(times_to_proto(times))
        offer.first_text += prefilled.first_text
        offer.opaque_state = prefilled.opaque_state
        offer.cached_tokens = prefilled.cached_tokens
        offer.prompt_tokens = prefilled.prompt_tokens
        offer.prompt_token_ids.extend(prefilled.prompt_token_ids)
        offer.first_token_ids.extend(prefilled.first_token_ids)
        offer.kv_bytes = prefilled.kv_bytes
        offer.kv_ready = True
    return offer


def handed_prefill(handed: pb.HandOffRequest) -> Prefilled:
    """The prefill side's result as the decode side knows it."""
    times = times_from_proto(handed.times)
    return Prefilled(
        started_us=times.prefill_start_us,
        ended_us=times.prefill_end_us,
        cached_tokens=handed.cached_tokens,
        first_text=handed.first_text,
        finish=FinishReason.NONE,
        kv_bytes=handed.kv_bytes,
        opaque_state=handed.opaque_state,
        prompt_tokens=handed.prompt_tokens,
        prompt_token_ids=handed.prompt_token_ids,
        first_token_ids=handed.first_token_ids,
    )
