"""Links between engines, used ahead of calls: engines connect lazily, so the first transfer of a pair is its slowest.

A tiny prompt goes from each prefill engine of this agent to each decode engine it may hand over to, one at a time,
behind all that waits there, whenever an engine of either side has been started. Calls do not wait for that. A link over
which no KV comes is given no calls until a later prompt has come over it, which goes before calls; a prefill engine
that has no other links gets none.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from hexagent.api.common.v1 import call_pb2, enums_pb2
from hexagent.api.worker.v1 import worker_service_pb2 as pb
from hexagent.core.errors import HexagentError
from hexagent.core.ids import CallId, Ticket
from hexagent.core.instance.spec import InstanceSpec, Role
from hexagent.core.scheduling.events import Phase
from hexagent.runtime.clock import Clock
from hexagent.runtime.kv import KvWatch
from hexagent.runtime.logs import fields
from hexagent.wire.codec import ticket_from_proto
from hexagent.wire.telemetry import AgentAnnouncement, FailedLink, Links, announcement_from_bytes
from hexagent.wire.worker import Attempt, attempt_from_proto
from hexagent_services.worker_agent.engine.admission import FIRST_RANK, LAST_RANK
from hexagent_services.worker_agent.engine.port import (
    DecodeStarted,
    Engine,
    EngineAborted,
    EngineRefused,
    Finished,
    HandedOver,
    KvPiece,
)
from hexagent_services.worker_agent.live import LiveAttempt, hand_off_request, handed_prefill
from hexagent_services.worker_agent.peers import Peers
from hexagent_services.worker_agent.requests import engine_request

log = logging.getLogger(__name__)

AGAIN_S: Final = (0.5, 2.0, 10.0, 60.0)  # wall time before a link is tried again, by failures in a row
FAILED_MAX: Final = 16  # that are named in a report
REFUSAL: Final = "LINK_FAILED"
ABSENT: Final = "NOT_THERE"


class _Link:
    """From one instance of this agent to a decode instance."""

    def __init__(self, target: InstanceSpec, address: str, cause: str) -> None:
        self.target = target
        self.address = address
        self.warm = False
        self.absent = False  # the other side was not there
        self.transfer_us = 0
        self.failures = 0  # in a row
        self.cause = cause  # of the last failure that was the link's own: quarantined
        self.due_s = 0.0  # on the loop's clock

    def tried(self, reason: str, now_s: float) -> None:
        """With success, or why not: that the other side is not there, or has no room, says nothing about the link."""
        self.absent = reason == ABSENT
        if not reason:
            self.warm, self.cause = True, ""
            return
        self.due_s = now_s + AGAIN_S[min(self.failures, len(AGAIN_S) - 1)]
        self.failures += 1
        if reason.startswith("KV_LOST"):
            self.cause = reason


class WarmUps:
    """Of one agent; `engines` are those that connect lazily, `address` is where the agent is reached."""

    def __init__(self, engines: Mapping[str, Engine], peers: Peers, clock: Clock, address: str) -> None:
        self._engines = engines
        self._peers = peers
        self._clock = clock
        self._address = address
        self._links: dict[str, dict[str, _Link]] = {name: {} for name in engines}
        self._cut_off: set[str] = set()
        self._agents: dict[str, AgentAnnouncement] = {}
        self._changed = asyncio.Event()
        self._pulls: dict[Ticket, asyncio.Task[tuple[str, int]]] = {}  # that others have asked for

    # --- what is known ----------------------------------------------------------------------------------------
    def refusal(self, source: str, target: str) -> str:
        """Why no call may be handed over there, "" = it may."""
        link = self._links.get(source, {}).get(target)
        return REFUSAL if link is not None and link.cause else ""

    def cut_off(self, instance_id: str) -> bool:
        """It has links, and no KV comes over any whose other side is there: what it prefills could go nowhere."""
        return instance_id in self._cut_off

    def links_of(self, instance_id: str) -> Links | None:
        """None for an instance whose links need no warm-up."""
        if instance_id not in self._links or self._engines[instance_id].spec.role is not Role.PREFILL:
            return None
        links = sorted(self._links[instance_id].items())
        warm = [link for _, link in links if link.warm]
        failed = [FailedLink(target, link.cause) for target, link in links if link.cause]
        slowest_us = max((link.transfer_us for link in warm), default=0)
        return Links(len(warm), len(links) - len(warm) - len(failed), tuple(failed[:FAILED_MAX]), slowest_us)

    def announced(self, announcement: AgentAnnouncement) -> None:
        """An agent is there, or some engine of it came or went: links to it are cold, and what failed still has."""
        self._agents[announcement.agent_id] = announcement
        mine = any(spec.instance_id in self._links for spec in announcement.instances)
        for agent in self._agents.values() if mine else (announcement,):
            for spec in agent.instances:
                for source, links in self._links.items():
                    known = links.pop(spec.instance_id, None)
                    if spec.instance_id not in agent.down and _fits(self._engines[source].spec, spec):
                        links[spec.instance_id] = _Link(spec, agent.address, known.cause if known else "")
        self._changed.set()

    # --- prefill side -----------------------------------------------------------------------------------------
    async def run(self, announcements: KvWatch, changed: Callable[[str], None]) -> None:
        """Follow the agents and warm up until cancelled; `changed` is told who is cut off, or no longer."""
        async with asyncio.TaskGroup() as tasks:
            for source in self._links:
                tasks.create_task(self._keep_warm(source, changed))
            async for entry in announcements:
                if entry.value is not None:
                    self.announced(announcement_from_bytes(entry.value))
                    self._look(changed)

    async def _keep_warm(self, source: str, changed: Callable[[str], None]) -> None:
        """Try the links of one instance, each when it is due, one after the other."""
        while True:
            self._changed.clear()
            cold = [link for link in self._links[source].values() if not link.warm]
            link = min(cold, key=lambda link: (link.due_s, link.target.instance_id), default=None)
            try:
                async with asyncio.timeout_at(None if link is None else link.due_s):
                    await self._changed.wait()
            except TimeoutError:
                assert link is not None
                await self._warm(self._engines[source], link)
                self._look(changed)

    def _look(self, changed: Callable[[str], None]) -> None:
        for source, links in self._links.items():
            fails = any(link.cause for link in links.values())
            if (fails and all(link.cause or link.absent for link in links.values())) != self.cut_off(source):
                self._cut_off ^= {source}
                changed(source)

    async def _warm(self, engine: Engine, link: _Link) -> None:
        rank = FIRST_RANK if link.cause else LAST_RANK  # what has failed stays closed until then
        attempt = _attempt(engine.spec, link.target, rank, self._clock.now_us())
        try:
            reason, link.transfer_us = await self._hand_over(engine, attempt, link)
        except EngineRefused as error:
            reason = error.reason
        except EngineAborted:
            reason = "ABORTED"
        except Exception:
            log.exception("no warm-up of the link to %s", link.target.instance_id)
            reason = "AGENT_ERROR"
        finally:
            engine.abort(attempt.ticket)
        link.tried(reason, asyncio.get_running_loop().time())
        if reason:
            ids = fields(instance_id=engine.spec.instance_id)
            log.warning("the link to %s is not warm: %s", link.target.instance_id, reason, extra=ids)

    async def _hand_over(self, engine: Engine, attempt: Attempt, link: _Link) -> tuple[str, int]:
        if not await self._peers.runs(link.address, link.target.instance_id):
            return ABSENT, 0  # and no prompt has to be held in vain
        request = (await engine_request(attempt, None))._replace(warm_up=True)
        prefilled = await engine.prefill(request)
        live = LiveAttempt(attempt, engine, Phase.PREFILLED)
        offer = hand_off_request(live, request, prefilled, link.target.instance_id, self._address)
        reason, transfer_us = await self._peers.warm_up(link.address, offer)
        if not reason:
            with contextlib.suppress(EngineRefused):  # it was pulled, and given up just before that was known
                async for _ in engine.send_kv(attempt.ticket, link.target.instance_id, link.target.link):
                    pass
        return reason, transfer_us

    # --- decode side ------------------------------------------------------------------------------------------
    async def pull(self, handed: pb.HandOffRequest) -> tuple[str, int]:
        """Pull a prompt and decode a token of it: why that failed, "" = it did not, and how long the transfer took.

        Idempotent by ticket while it lasts.
        """
        ticket = ticket_from_proto(handed.attempt.ticket)
        if ticket not in self._pulls:
            self._pulls[ticket] = asyncio.create_task(self._pull(handed))
            self._pulls[ticket].add_done_callback(lambda _: self._pulls.pop(ticket))
        return await asyncio.shield(self._pulls[ticket])

    async def _pull(self, handed: pb.HandOffRequest) -> tuple[str, int]:
        engine = self._engines.get(handed.target_instance)
        if engine is None:
            return "UNKNOWN_INSTANCE", 0
        request = (await engine_request(attempt_from_proto(handed.attempt), None))._replace(
            prompt_tokens=handed.prompt_tokens, warm_up=True
        )
        transfer = KvPiece(b"", True)

        async def let_go() -> KvPiece:
            return transfer  # by the holder itself, once this has ended

        try:
            engine.reserve(request, handed.source_instance, True)
            given = HandedOver(handed.source_instance, handed_prefill(handed), True)
            async for event in engine.decode(request, given, let_go):
                if isinstance(event, DecodeStarted | Finished):
                    transfer = event.transfer or transfer
        except (EngineRefused, HexagentError) as error:
            return error.reason, 0
        except EngineAborted:
            return "ABORTED", 0
        return "", transfer.end_us - transfer.start_us


def _fits(source: InstanceSpec, target: InstanceSpec) -> bool:
    same = ("model", "kv_precision", "block_tokens")
    roles = (source.role, target.role) == (Role.PREFILL, Role.DECODE)
    return roles and all(getattr(source, name) == getattr(target, name) for name in same)


def _attempt(source: InstanceSpec, target: InstanceSpec, rank: int, now_us: int) -> Attempt:
    """Two tokens behind a prompt like no other, whose ids are in every vocabulary: none of it is cached anywhere."""
    name = f"{source.instance_id}>{target.instance_id}@{now_us}"
    call = call_pb2.CallRequest(model=source.model)
    call.sampling.ignore_eos = True
    ids = [16 + byte // 2 for byte in hashlib.sha256(name.encode()).digest()]
    kind = enums_pb2.SEGMENT_KIND_TOKEN_IDS
    call.segments.add(kind=kind, body=call_pb2.SegmentBody(kind=kind, token_ids=ids, tokens=len(ids)))
    return Attempt(
        ticket=Ticket(CallId("warm-up", name), attempt=1, epoch=1),
        payload=call.SerializeToString(),
        outputs={},
        prompt_tokens=len(ids),
        max_tokens=2,
        reserve_output_tokens=2,
        rank=rank,
        tenant="",
        workflow_class="",
        trace_context={},
        dispatched_us=now_us,
    )
