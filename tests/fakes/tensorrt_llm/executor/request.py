"""What a request names its adapter by."""

from ..contract import record_class

LoRARequest = record_class("tensorrt_llm/executor/request.py", "LoRARequest")
