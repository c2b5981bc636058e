"""Solo times for people: the cluster's tables with the newest snapshot of learned parameters."""

import logging
import time
from collections.abc import Callable
from typing import Final

from hexagent.core.errors import HexagentError
from hexagent.core.estimate.estimator import Estimator
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.scheduling.projection import solo_cost_us
from hexagent.core.workflow.graph import Node, WorkflowGraph
from hexagent.runtime import subjects
from hexagent.runtime.bus import Bus
from hexagent.wire.estimator import snapshot_from_bytes

log = logging.getLogger(__name__)

REFRESH_S: Final = 1.0  # a snapshot this old is looked for again


class Estimates:
    """Read only when somebody asks: the tracker decides nothing by costs."""

    def __init__(self, bus: Bus, cluster: ClusterSpec) -> None:
        self._bucket = bus.bucket(subjects.SNAPSHOT_BUCKET)
        self._estimator = Estimator(cluster)
        self._refreshed_s = -REFRESH_S

    async def refresh(self) -> None:
        """Take the newest snapshot; without an answer the last one stays."""
        now_s = time.monotonic()
        if now_s - self._refreshed_s < REFRESH_S:
            return
        self._refreshed_s = now_s
        try:
            entry = await self._bucket.get(subjects.SNAPSHOT_KEY)
            if entry is not None and entry.value is not None:
                self._estimator.update(snapshot_from_bytes(entry.value))
        except HexagentError as error:
            log.warning("no new snapshot of the estimator: %s", error)

    def solo(self, graph: WorkflowGraph) -> Callable[[Node], int]:
        """Microseconds of a node of `graph` alone on the cluster."""
        workflow_class = graph.spec.workflow_class
        return lambda node: solo_cost_us(node, self._estimator, workflow_class)
