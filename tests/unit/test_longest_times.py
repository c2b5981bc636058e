"""Hints as long as the limits allow: tools that take years, a million calls to come."""

import numpy as np
import pytest

from hexagent.core.units import LONGEST_US, PPM
from hexagent.core.workflow.events import NodesRevealed
from hexagent.core.workflow.limits import Limits
from hexagent.core.workflow.model import Hints, NodeKind, NodeSpec, ToolSpec
from tests.sim.cases import MODEL, Desk, decodes, prefills

LIMITS = Limits()


@pytest.mark.parametrize("policy", ["hexagent-plus", "hexagent", "workflow-llf"])
def test_they_neither_stop_the_scheduler_nor_make_their_workflow_urgent(policy: str) -> None:
    desk = Desk(prefills("h100") + decodes("h100"), policy)
    desk.start("busy")
    desk.reveal("busy", "x")
    desk.start("long", hints=Hints(total_calls=LIMITS.hinted_calls))
    tools = [
        NodeSpec(f"t{n}", NodeKind.TOOL, "", (f"t{n - 1}",) if n else (), tool=ToolSpec("search", LIMITS.duration_us))
        for n in range(30)
    ]
    desk.tell(NodesRevealed("long", tuple(tools), 0))
    desk.reveal("long", "a")
    desk.start("other")
    desk.reveal("other", "b")
    workflow, waiting = desk.core.projection.workflows["long"], desk.core.waiting[MODEL]
    assert workflow.horizon_us == workflow.trail.total_us == LONGEST_US
    long, other = desk.core.policy.order.scores(waiting.ages(0), np.array([PPM, PPM])).tolist()
    assert [call.call_id.workflow_id for call in waiting.calls] == ["long", "other"]
    assert other < long
