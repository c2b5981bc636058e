"""The adapter a call runs with, among those that its instance serves."""

from typing import NamedTuple

from hexagent.api.common.v1 import call_pb2
from hexagent.core.errors import Unsupported
from hexagent.core.instance.spec import InstanceSpec, Lora


class Adapter(NamedTuple):
    lora: Lora
    number: int  # from 1, of this instance's


def adapter_of(call: call_pb2.CallRequest, spec: InstanceSpec) -> Adapter | None:
    """None = the model alone. `Unsupported` (UNSUPPORTED_BY_ENGINE) for one that the instance does not serve."""
    if not call.lora:
        return None
    for number, lora in enumerate(spec.loras, 1):
        if lora.name == call.lora:
            return Adapter(lora, number)
    message = f"lora: {spec.instance_id} does not serve {call.lora[:80]!r}"
    raise Unsupported(message, reason="UNSUPPORTED_BY_ENGINE", field="lora")
