"""How a TensorRT-LLM engine is built and how long it is waited for."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class TrtllmOptions(NamedTuple):
    """Beyond what the instance's description says."""

    model_dir: str
    max_seq_tokens: int  # of the longest prompt and its output
    transceiver: str = "UCX"
    transfer_timeout_s: float = 60.0  # after which either side gives a hand-off up
    load_timeout_s: float = 1800.0
    stall_s: float = 60.0  # wall time without progress while there is work, after which it counts as hung
    grace_s: float = 5.0  # that the engine may take longer than its own timeout says
    arguments: Mapping[str, Any] = {}  # of the `LLM` constructor; they win
    restarts: bool = True  # it is the agent that starts it

    @property
    def hand_off_s(self) -> float:
        """After which the engine has given a hand-off up for certain, unless it is broken."""
        return self.transfer_timeout_s + self.grace_s
