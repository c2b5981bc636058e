"""What the host uses of `tensorrt_llm`, and which of its newer abilities this version has."""

import dataclasses
import inspect
from typing import Any, NamedTuple


class Library(NamedTuple):
    """The names the host uses; nothing else of the host imports the package."""

    version: str
    LLM: Any
    SamplingParams: Any
    DisaggregatedParams: Any
    KvCacheConfig: Any
    KvCacheRetentionConfig: Any
    CacheTransceiverConfig: Any
    SchedulerConfig: Any
    CapacitySchedulerPolicy: Any
    ContextChunkingPolicy: Any
    LoraConfig: Any
    LoRARequest: Any
    RequestError: Any


def load_library() -> Library:
    """Import the package, which takes many seconds and a GPU."""
    import tensorrt_llm
    from tensorrt_llm import llmapi
    from tensorrt_llm.executor.request import LoRARequest
    from tensorrt_llm.executor.utils import RequestError
    from tensorrt_llm.lora_helper import LoraConfig

    return Library(
        version=tensorrt_llm.__version__,
        LLM=tensorrt_llm.LLM,
        SamplingParams=tensorrt_llm.SamplingParams,
        DisaggregatedParams=llmapi.DisaggregatedParams,
        KvCacheConfig=llmapi.KvCacheConfig,
        KvCacheRetentionConfig=llmapi.KvCacheRetentionConfig,
        CacheTransceiverConfig=llmapi.CacheTransceiverConfig,
        SchedulerConfig=llmapi.SchedulerConfig,
        CapacitySchedulerPolicy=llmapi.CapacitySchedulerPolicy,
        ContextChunkingPolicy=llmapi.ContextChunkingPolicy,
        LoraConfig=LoraConfig,
        LoRARequest=LoRARequest,
        RequestError=RequestError,
    )


def capabilities(library: Library) -> dict[str, bool]:
    """Found by looking, never by comparing versions: features move between branches."""
    return {
        "priority": "priority" in inspect.signature(library.LLM.generate_async).parameters,
        "disagg_request_id": any(
            field.name == "disagg_request_id" for field in dataclasses.fields(library.DisaggregatedParams)
        ),
        "waiting_queue_policy": "waiting_queue_policy" in library.SchedulerConfig.model_fields,
        "pipelined_transfer": "enable_pipelined_transfer" in library.CacheTransceiverConfig.model_fields,
    }
