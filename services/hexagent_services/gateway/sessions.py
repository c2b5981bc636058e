"""Sessions: which workflow a request belongs to, from its first request to its last."""

import asyncio
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from hexagent.api.workflow.v1 import workflow_pb2
from hexagent.client import CallResult
from hexagent.core.errors import Aborted, HexagentError, ResourceExhausted
from hexagent_services.gateway.chat import Chat
from hexagent_services.gateway.identity import Caller, SessionName, tier_priority, workflow_id_of
from hexagent_services.gateway.prompts import Outputs, Revealed, node_of
from hexagent_services.gateway.workflow import Call, Tracker, Workflow

log = logging.getLogger(__name__)

LIVES_MAX: Final = 64  # of a session whose workflow ends again and again; beyond it ids are no longer agreed on
ROLE_CHARS: Final = 64  # of a role, in the ids of its calls
SWEEP_S: Final = 5.0  # between looks for idle sessions, at most

_ENDED: Final = frozenset({"WORKFLOW_FINISHED", "UNKNOWN_WORKFLOW"})


class SessionLimits(NamedTuple):
    """Bounds of the sessions."""

    sessions: int = 2048
    idle_s: float = 600.0
    outputs: int = 256  # remembered of each


class Session:
    """One session and the workflow it has now."""

    def __init__(self, workflow_id: str, outputs: Outputs, now_s: float, life: int = 1) -> None:
        self.base_id: Final = workflow_id
        self.outputs: Final = outputs
        self.lock: Final = asyncio.Lock()  # one start at a time
        self.workflow: Workflow | None = None
        self.life = life
        self.priority: int | None = 0  # None = whatever another gateway set
        self.calls = 0  # in progress here
        self.used_s = now_s
        self.final = False

    @property
    def workflow_id(self) -> str:
        """Of its present life: a workflow that has ended is followed by another one."""
        if self.life > LIVES_MAX:
            return f"{self.base_id}.{uuid.uuid4().hex[:8]}"
        return self.base_id if self.life == 1 else f"{self.base_id}.{self.life}"


class Sessions:
    """All sessions of this gateway. `now_s` is a clock of wall time that never steps back."""

    def __init__(self, tracker: Tracker, limits: SessionLimits, now_s: Callable[[], float]) -> None:
        self._tracker = tracker
        self._limits = limits
        self._now_s = now_s
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the longest unused first

    async def begin(self, caller: Caller, chat: Chat) -> Call:
        """Reveal the request's call in the workflow it belongs to. Raises what refuses it."""
        name = f"{(chat.options.role or 'call')[:ROLE_CHARS]}-{uuid.uuid4().hex[:16]}"
        session = self._session(caller)
        session.calls += 1
        try:
            call, revealed = await self._begin(session, caller, chat, name)
        except HexagentError as error:
            self._ended(session, failed_for=error.reason)
            raise
        except BaseException:
            self._ended(session, cancelled_for="CLIENT_DISCONNECTED")
            raise
        call.on_success = partial(_remember, session, chat, revealed.parents)
        call.on_close = partial(self._closed, session, call)
        return call

    async def sweep(self) -> None:
        """Finish idle sessions, until cancelled."""
        while True:
            await asyncio.sleep(min(SWEEP_S, self._limits.idle_s / 4))
            since_s = self._now_s() - self._limits.idle_s
            for key, session in list(self._sessions.items()):
                if session.used_s > since_s:
                    break
                if not session.calls:
                    self._remove(key, session)

    async def close(self) -> None:
        """Follow no workflow any more. They live on: another gateway, or the next start, may continue them."""
        await self._tracker.background.settled()
        for session in self._sessions.values():
            if session.workflow is not None:
                await session.workflow.close()
        self._sessions.clear()

    def __len__(self) -> int:
        return len(self._sessions)

    def _session(self, caller: Caller) -> Session:
        """The session of a request; one of its own where it names none. `ResourceExhausted` (TOO_MANY_SESSIONS)."""
        now_s = self._now_s()
        if caller.session is None:
            session = Session(f"r-{uuid.uuid4().hex}", Outputs(0), now_s)
            session.final = True
            return session
        key = workflow_id_of(caller.tenant, caller.session)
        found = self._sessions.get(key)
        if found is None:
            self._make_room()
            found = self._sessions[key] = Session(key, Outputs(self._limits.outputs), now_s)
        elif found.final:
            # What comes after the final request must not join a workflow that is about to end.
            found = self._sessions[key] = Session(key, found.outputs, now_s, found.life + 1)
        self._sessions.move_to_end(key)
        found.used_s = now_s
        found.final = caller.session.final
        return found

    def _make_room(self) -> None:
        if len(self._sessions) < self._limits.sessions:
            return
        for key, session in self._sessions.items():
            if not session.calls:
                self._remove(key, session)
                return
        raise ResourceExhausted(
            f"{len(self._sessions)} sessions have calls in progress", reason="TOO_MANY_SESSIONS",
            details={"limit": str(self._limits.sessions)},
        )  # fmt: skip

    async def _begin(self, session: Session, caller: Caller, chat: Chat, name: str) -> tuple[Call, Revealed]:
        for _ in range(2 * LIVES_MAX):
            workflow = await self._workflow(session, caller, chat)
            try:
                await self._prioritise(session, workflow, caller, chat)
                revealed = node_of(chat, name, workflow.workflow_id, session.outputs)
                return await workflow.reveal(revealed.spec, revealed.bodies), revealed
            except HexagentError as error:
                if error.reason in _ENDED:
                    await self._next_life(session, workflow)
                elif error.reason != "SEGMENTS_MISSING" or not session.outputs.expire(_keys(chat)):
                    raise
        raise Aborted("the session's workflow ends as fast as it is started", reason="SESSION_UNSTABLE")

    async def _workflow(self, session: Session, caller: Caller, chat: Chat) -> Workflow:
        """The session's workflow, started where it has none."""
        async with session.lock:
            if session.workflow is not None and session.workflow.usable:
                return session.workflow
            priority = tier_priority(chat.service_tier, caller.priority) or 0
            spec = workflow_pb2.WorkflowSpec(
                workflow_id=session.workflow_id,
                tenant=caller.tenant,
                workflow_class=chat.options.workflow_class,
                priority=priority,
                slo_scale=chat.options.slo_scale,
                metadata=_metadata(caller.session),
            )
            workflow = Workflow(self._tracker, spec.workflow_id)
            session.priority = priority if await workflow.start(spec, caller.trace) else None
            session.workflow = workflow
            return workflow

    async def _prioritise(self, session: Session, workflow: Workflow, caller: Caller, chat: Chat) -> None:
        priority = tier_priority(chat.service_tier, caller.priority)
        if priority is not None and priority != session.priority:
            await workflow.set_priority(priority)
            session.priority = priority

    async def _next_life(self, session: Session, workflow: Workflow) -> None:
        """The workflow has ended or is forgotten; of several calls that notice, one moves on."""
        if session.workflow is workflow:
            session.workflow = None
            session.life += 1
            await workflow.close()

    def _closed(self, session: Session, call: Call, cancelled_for: str) -> None:
        if cancelled_for and not (session.final and session.calls == 1):
            call.workflow.cancel_soon(call.node_id, cancelled_for)  # else its workflow is cancelled with it
        self._ended(session, cancelled_for=cancelled_for, failed_for=call.failure)

    def _ended(self, session: Session, *, cancelled_for: str = "", failed_for: str = "") -> None:
        """One request less; the last one of a final session ends its workflow."""
        session.calls -= 1
        session.used_s = self._now_s()
        workflow = session.workflow
        if self._sessions.get(session.base_id) is session:
            self._sessions.move_to_end(session.base_id)
            if workflow is None and not session.calls and not session.final:
                del self._sessions[session.base_id]  # never started, as for an unknown tenant
        if session.final and not session.calls and workflow is not None:
            session.workflow = None
            work = workflow.finish(cancelled_for=cancelled_for, failed_for=failed_for)
            self._tracker.background.start(work, f"finish {workflow.workflow_id}")

    def _remove(self, key: str, session: Session) -> None:
        del self._sessions[key]
        if session.workflow is not None:
            self._tracker.background.start(_finish_idle(session.workflow), f"finish {key}")


async def _finish_idle(workflow: Workflow) -> None:
    """Finish a workflow unless a call of it runs at another gateway, which then finishes it in its time."""
    if await workflow.calls_open():
        await workflow.close()
    else:
        await workflow.finish()


def _remember(session: Session, chat: Chat, parents: tuple[str, ...], result: CallResult) -> None:
    session.outputs.add(result, chat.said(result), parents)


def _keys(chat: Chat) -> list[str]:
    return [message.output_key for message in chat.messages if message.output_key]


def _metadata(session: SessionName | None) -> dict[str, str]:
    if session is None:
        return {}
    parent = {"session.parent": session.parent} if session.parent else {}
    return {"session.schema": session.schema, "session.id": session.session_id, **parent}
