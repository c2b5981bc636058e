"""Signatures and configuration classes made from the manifest: what it does not name cannot be passed."""

import dataclasses
import functools
import inspect
import json
import os
from pathlib import Path
from typing import Any

_DEFAULT = Path(__file__).parents[2] / "contract" / "trtllm" / "manifest_1.2.1.json"

manifest: dict[str, Any] = json.loads(Path(os.environ.get("FAKE_TRTLLM_MANIFEST", _DEFAULT)).read_text())


@functools.cache
def signature(path: str, name: str) -> inspect.Signature:
    """Of a method, as the manifest lists its parameters."""
    method = manifest[path]["methods"][name]
    kinds = [inspect.Parameter(p, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for p in method["params"]]
    if method.get("varkw"):
        kinds.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(kinds)


def bind(path: str, name: str, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """The arguments by name, as the method of the manifest would take them; `TypeError` where it would not."""
    return dict(signature(path, name).bind(*arguments, **keywords).arguments)


def told(path: str, owner: str, **values: Any) -> dict[str, Any]:
    """Of what an object says, that which the manifest names."""
    return {name: value for name, value in values.items() if name in manifest[path]["reads"][owner]}


def _value(default: str) -> Any:
    try:
        return json.loads(default.replace("None", "null").replace("True", "true").replace("False", "false"))
    except ValueError:
        return default


def record_class(path: str, name: str) -> type[Any]:
    """A configuration class with the manifest's fields, and `model_fields` like a pydantic one."""
    kinds = manifest[path]
    read = dict.fromkeys(kinds.get("reads", {}).get(name, ()), "None")
    fields = {**read, **kinds.get("fields", {}).get(name, {}), **kinds.get("uses", {}).get(name, {})}
    made = dataclasses.make_dataclass(
        name,
        [(field, Any, dataclasses.field(default=_value(default))) for field, default in fields.items()],
        kw_only=True,
    )
    made.model_fields = dict(fields)  # type: ignore[attr-defined]
    return made


def checked_arguments(arguments: dict[str, Any]) -> None:
    """Keyword arguments of the engine; an unknown one is an error, as in the real constructor."""
    known = manifest["tensorrt_llm/llmapi/llm_args.py"]["arguments"]
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise ValueError(f"extra arguments: {', '.join(unknown)}")
