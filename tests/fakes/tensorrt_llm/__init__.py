"""A stand-in for TensorRT-LLM that runs anywhere: its interface as in the manifest, its behaviour as documented.

What a user of the real one must know, and meets here: parameters of a context-only request are written into, the decode
side repeats the first token, a cancelled request has no finish reason, statistics are empty before the first request
and gone once read, KV events raise before it, blocks are taken before KV is pulled, and whatever `model.Faults` says.
"""

from .contract import manifest
from .llm import LLM
from .llmapi import DisaggregatedParams, KvCacheConfig, SamplingParams

__version__ = manifest["version"]

__all__ = ["LLM", "DisaggregatedParams", "KvCacheConfig", "SamplingParams", "__version__"]
