"""What the scripts of a run tell a scheduler that may know the future."""

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.ids import CallId
from hexagent.sim.clients import ScriptHorizon, horizon_of_script, solo_of
from hexagent.sim.workloads.model import Workload


class ScriptOracle:
    """Implements `Oracle`. A call of item n is `cN`, as `ScriptedClient` names it."""

    def __init__(self, workload: Workload, estimator: Estimator, model: str) -> None:
        self._scripts = {script.workflow_id: script for script in workload.workflows}
        self._estimator = estimator
        self._model = model
        self._horizons: dict[str, tuple[ScriptHorizon, int]] = {}

    def output_tokens(self, call: CallId) -> int:
        return self._scripts[call.workflow_id].items[_item(call)].output_tokens

    def below_us(self, call: CallId) -> int:
        (horizon, node_of, _), _ = self._horizon(call.workflow_id)
        node = node_of[_item(call)]
        return horizon.below_us(node) - horizon.cost_us(node)

    def horizon_us(self, workflow_id: str) -> int:
        return self._horizon(workflow_id)[1]

    def _horizon(self, workflow_id: str) -> tuple[ScriptHorizon, int]:
        known = self._horizons.get(workflow_id)
        if known is None:
            script = self._scripts[workflow_id]
            graph = horizon_of_script(script, self._estimator, self._model)
            solo_us = solo_of(script, self._estimator, self._model).solo_us
            known = self._horizons[workflow_id] = (graph, max(solo_us, 1))
        return known


def _item(call: CallId) -> int:
    return int(call.node_id[1:])
