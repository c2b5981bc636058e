"""The engine host: TensorRT-LLM in a process of its own, in its own Python, told what to do by one worker-agent.

A program apart: it imports the standard library and `tensorrt_llm` only, and runs on Python 3.10 and later, because it
lives in the environment of the TensorRT-LLM image. It connects to its agent's Unix socket, is told once which engine to
build, and then carries out orders until the connection ends. Orders and events are frames (`frames`):

| order | fields | answered by |
|---|---|---|
| load | see `arguments.engine_arguments` | loaded {capabilities, version} |
| prefill | id, sampling, request_id, retention; token ids | prefilled {state, finish, cached_tokens, timing; id} |
| decode | id, sampling, state, stream; token ids | first, tokens {ids}, ended {finish, timing; ids} |
| local | id, sampling, retention, stream; token ids | first {cached_tokens; id}, then as decode |
| abort | id | nothing of its own: the request ends as `cancelled` |

Each of prefill, decode and local has `lora` besides: null, or the fields of a `LoRARequest`.
An order that the engine refuses ends with {finish: "refused", message}. `stats` comes a few times a second while the
engine works. A broken engine ends the process.
"""
