"""What only a simulation knows and may tell a scheduler, to show what better information would be worth."""

from typing import Protocol

from hexagent.core.ids import CallId


class Oracle(Protocol):
    """The future of the workflows that run. A live scheduler has none."""

    def output_tokens(self, call: CallId) -> int:
        """What the call will really generate."""
        ...

    def below_us(self, call: CallId) -> int:
        """Longest path from the call's end to its workflow's, alone on the cluster: true lengths and tools."""
        ...

    def horizon_us(self, workflow_id: str) -> int:
        """The workflow's final horizon, what its stretch will be measured by; at least 1."""
        ...
