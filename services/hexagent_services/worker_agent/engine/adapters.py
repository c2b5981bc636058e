"""The adapter a call runs with, among those that its instance serves."""

from typing import Any, NamedTuple

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
    raise _unsupported(f"{spec.instance_id} does not serve {call.lora[:80]!r}")


def lora_request_of(call: call_pb2.CallRequest, spec: InstanceSpec, able: bool) -> dict[str, Any] | None:
    """Keyword arguments of TensorRT-LLM's `LoRARequest`. `Unsupported` also where the engine cannot take one."""
    adapter = adapter_of(call, spec)
    if adapter is None:
        return None
    if not able:
        raise _unsupported("this engine takes none with a request")
    return {"lora_name": adapter.lora.name, "lora_int_id": adapter.number, "lora_path": adapter.lora.directory}


def _unsupported(text: str) -> Unsupported:
    return Unsupported(f"lora: {text}", reason="UNSUPPORTED_BY_ENGINE", field="lora")
