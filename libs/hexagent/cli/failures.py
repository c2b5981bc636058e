"""Errors as a user of the command line meets them: one line that names the option, and an exit status."""

import contextlib
from collections.abc import Iterator
from typing import Final

from hexagent.core import errors
from hexagent.core.errors import HexagentError

EXIT_FAILED: Final = 1  # the work was asked for rightly and did not succeed
EXIT_USAGE: Final = 2  # the command line, or a file it names, can never be right

_USAGE: Final = (
    errors.InvalidArgument,
    errors.NotFound,
    errors.AlreadyExists,
    errors.FailedPrecondition,
    errors.Unsupported,
)

# Fields of the library's errors that stand for an option or argument.
_OPTIONS: Final = {
    "address": "--address",
    "alpha": "--alpha",
    "arrivals": "--arrivals",
    "baseline": "--baseline",
    "call": "CALL",
    "call.node_id": "CALL",
    "call.workflow_id": "CALL",
    "cells": "--cells",
    "change": "--change",
    "node_id": "CALL",
    "workflow_id": "CALL",
    "cluster": "--cluster",
    "data_dir": "--data",
    "duration_s": "--duration",
    "engine_profile": "--engine-profile",
    "estimator": "--estimator",
    "gap_limit_us": "--gap-limit",
    "gantt": "--gantt",
    "gpu": "--gpu",
    "hardware": "--hardware",
    "hints": "--hints",
    "json": "--json",
    "lengths": "--lengths",
    "limit": "--limit",
    "link_gb_per_s": "--link",
    "flip_s": "--flip",
    "load": "--load",
    "model": "--model",
    "noise": "--noise",
    "out": "--out",
    "picture": "--picture",
    "policies": "--policies",
    "policy": "--policy",
    "precision": "--precision",
    "profile": "--profile",
    "rate": "--rate",
    "rate_per_s": "--rate",
    "scheduler": "--scheduler",
    "seed": "--seed",
    "spread": "--spread",
    "tools": "--tools",
    "tp": "--tp",
    "seeds": "--seeds",
    "time_scale": "--time-scale",
    "tables": "CSV",
    "trace": "--trace",
    "trace_file": "--trace-file",
    "trace_format": "--trace-format",
    "workflows": "--workflows",
    "workloads": "--workloads",
    "workload": "WORKLOAD",
    "world": "--world",
}


def exit_status(error: HexagentError) -> int:
    """2 for what the user must change, 1 for what failed."""
    return EXIT_USAGE if isinstance(error, _USAGE) else EXIT_FAILED


def failure_text(error: HexagentError) -> str:
    """The message behind the option or field it is about."""
    option = _OPTIONS.get(error.field, error.field)
    message = error.message
    for name in {option, error.field}:
        message = message.removeprefix(f"{name}: ")
    return f"{option}: {message}" if option else message


def usage(field: str, message: str) -> errors.InvalidArgument:
    """An option that is wrong by itself or together with others."""
    return errors.InvalidArgument(message, reason="BAD_OPTION", field=field)


@contextlib.contextmanager
def options_named(names: dict[str, str]) -> Iterator[None]:
    """Errors name these options of the command instead of the library's fields."""
    try:
        yield
    except HexagentError as error:
        error.field = names.get(error.field, error.field)
        raise
