"""The names of `tensorrt_llm.llmapi` that a host uses."""

import datetime
import enum
from typing import Any, NamedTuple

from .contract import manifest, record_class

_ARGUMENTS = "tensorrt_llm/llmapi/llm_args.py"

DisaggregatedParams = record_class("tensorrt_llm/disaggregated_params.py", "DisaggregatedParams")
CacheTransceiverConfig = record_class(_ARGUMENTS, "CacheTransceiverConfig")
SchedulerConfig = record_class(_ARGUMENTS, "SchedulerConfig")
KvCacheConfig = record_class(_ARGUMENTS, "KvCacheConfig")
SamplingParams = record_class("tensorrt_llm/sampling_params.py", "SamplingParams")
CapacitySchedulerPolicy: Any = enum.Enum(  # type: ignore[misc]
    "CapacitySchedulerPolicy", manifest[_ARGUMENTS]["enums"]["CapacitySchedulerPolicy"]
)
ContextChunkingPolicy: Any = enum.Enum(  # type: ignore[misc]
    "ContextChunkingPolicy", manifest[_ARGUMENTS]["enums"]["ContextChunkingPolicy"]
)


class KvCacheRetentionConfig:
    """Refuses what the real one refuses."""

    class TokenRangeRetentionConfig(NamedTuple):
        token_start: int
        token_end: int | None = None
        priority: int = 35
        duration: datetime.timedelta | None = None

    def __init__(
        self,
        token_range_retention_configs: list[TokenRangeRetentionConfig],
        decode_retention_priority: int = 35,
        decode_duration_ms: datetime.timedelta | None = None,
    ) -> None:
        for priority in (decode_retention_priority, *(r.priority for r in token_range_retention_configs)):
            if not 0 <= priority <= 100:
                raise ValueError(f"invalid priority {priority}")
        self.ranges = token_range_retention_configs
        self.decode = (decode_retention_priority, decode_duration_ms)
