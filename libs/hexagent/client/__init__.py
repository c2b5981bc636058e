"""The Python SDK: agent workflows as ordinary async code.

    async with hexagent.client.connect("127.0.0.1:7400") as client:
        async with client.workflow("research", slo_scale=3) as wf:
            plan = await wf.call("Plan the work: ...", role="plan", max_tokens=256)
            async with wf.tool("search", after=[plan]):
                ...
            parts = await asyncio.gather(*(wf.call([plan, f"Do part {i}"], role="worker") for i in range(4)))
            final = await wf.call(["Merge:", *parts], role="synthesise")

Every error is one of `hexagent.core.errors`, with a stable `reason`.
"""

from hexagent.client.nodes import CallStream, NodeHandle, ToolHandle
from hexagent.client.options import CallOptions
from hexagent.client.prompts import Segment
from hexagent.client.results import CallFailed, CallResult, Usage
from hexagent.client.session import Client, connect
from hexagent.client.views import (
    NodeState,
    UsageRow,
    WorkflowDescription,
    WorkflowOutcome,
    WorkflowSummary,
)
from hexagent.client.workflow import Workflow
from hexagent.core.errors import HexagentError
from hexagent.core.workflow.model import FinishReason, Join, JoinKind, NodeStatus, WorkflowStatus
from hexagent.text.tools import ToolCall

__all__ = [
    "CallFailed",
    "CallOptions",
    "CallResult",
    "CallStream",
    "Client",
    "FinishReason",
    "HexagentError",
    "Join",
    "JoinKind",
    "NodeHandle",
    "NodeState",
    "NodeStatus",
    "Segment",
    "ToolCall",
    "ToolHandle",
    "Usage",
    "UsageRow",
    "Workflow",
    "WorkflowDescription",
    "WorkflowOutcome",
    "WorkflowStatus",
    "WorkflowSummary",
    "connect",
]
