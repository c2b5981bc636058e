"""How adapters are configured."""

from .contract import record_class

LoraConfig = record_class("tensorrt_llm/lora_helper.py", "LoraConfig")
