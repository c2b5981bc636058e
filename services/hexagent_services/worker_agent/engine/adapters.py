"""The adapter a call runs with, among those that its instance serves."""

from typing import Any

from hexagent.api.common.v1 import call_pb2
from hexagent.core.errors import Unsupported
from hexagent.core.instance.spec import InstanceSpec


def adapter_of(call: call_pb2.CallRequest, spec: InstanceSpec) -> int:
    """Its number among the instance's, from 1; 0 = the model alone. `Unsupported` (UNSUPPORTED_BY_ENGINE) for one that
    the instance does not serve."""
    names = ["", *[lora.name for lora in spec.loras]]
    if call.lora not in names:
        raise _unsupported(f"{spec.instance_id} does not serve {call.lora[:80]!r}")
    return names.index(call.lora)


def lora_request_of(call: call_pb2.CallRequest, spec: InstanceSpec, able: bool) -> dict[str, Any] | None:
    """Keyword arguments of TensorRT-LLM's `LoRARequest`. `Unsupported` also where the engine cannot take one."""
    number = adapter_of(call, spec)
    if not number:
        return None
    if not able:
        raise _unsupported("this engine takes none with a request")
    return {"lora_name": call.lora, "lora_int_id": number, "lora_path": spec.loras[number - 1].directory}


def _unsupported(text: str) -> Unsupported:
    return Unsupported(f"lora: {text}", reason="UNSUPPORTED_BY_ENGINE", field="lora")
