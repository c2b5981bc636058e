"""Stands in for `nvidia-ml-py`: only the names that are used, on the GPUs that `FAKE_GPUS` lists.

`FAKE_GPUS` is NAME=GIB pairs with commas between; without it there is no driver. GPU i is called GPU-i, is 40 + i
degrees hot and draws 300 + i W. It is of before `nvmlDeviceGetTemperatureV`, and its clock is not known.
"""

import os
from typing import NamedTuple

NVML_TEMPERATURE_GPU = 0
NVML_CLOCK_SM = 1


class NVMLError(Exception):
    """Any failure."""


class NVMLError_LibraryNotFound(NVMLError):
    """There is no driver."""


class NVMLError_NotSupported(NVMLError):
    """The GPU has no such thing."""


class NVMLError_FunctionNotFound(NVMLError):
    """The driver has no such function."""


class NVMLError_NotFound(NVMLError):
    """There is no such GPU."""


class Memory(NamedTuple):
    total: int
    free: int
    used: int


class Rates(NamedTuple):
    gpu: int
    memory: int


class _State:
    open = False


def _gpus() -> list[tuple[str, int]]:
    if not _State.open:
        raise NVMLError("uninitialized")
    pairs = [gpu.rpartition("=") for gpu in os.environ["FAKE_GPUS"].split(",")]
    return [(name, int(gib) << 30) for name, _, gib in pairs]


def nvmlInit() -> None:
    if "FAKE_GPUS" not in os.environ:
        raise NVMLError_LibraryNotFound("NVML Shared Library Not Found")
    _State.open = True


def nvmlShutdown() -> None:
    _gpus()
    _State.open = False


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    if not 0 <= index < len(_gpus()):
        raise NVMLError("Invalid Argument")
    return index


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:
    known = [f"GPU-{i}" for i in range(len(_gpus()))]
    if uuid not in known:
        raise NVMLError_NotFound("Not Found")
    return known.index(uuid)


def nvmlDeviceGetName(handle: int) -> str:
    return _gpus()[handle][0]


def nvmlDeviceGetMemoryInfo(handle: int, version: int | None = None) -> Memory:
    total = _gpus()[handle][1]
    return Memory(total, total - (1 << 30), 1 << 30)


def nvmlDeviceGetUtilizationRates(handle: int) -> Rates:
    _gpus()
    return Rates(0, handle)


def nvmlDeviceGetPowerUsage(handle: int) -> int:
    _gpus()
    return 300_000 + 1_000 * handle


def nvmlDeviceGetTemperatureV(handle: int, sensor: int, version: int = 0) -> int:
    raise NVMLError_FunctionNotFound("Function Not Found")


def nvmlDeviceGetTemperature(handle: int, sensor: int) -> int:
    assert sensor == NVML_TEMPERATURE_GPU
    _gpus()
    return 40 + handle


def nvmlDeviceGetClockInfo(handle: int, type: int) -> int:
    assert type == NVML_CLOCK_SM
    raise NVMLError_NotSupported("Not Supported")


def nvmlDeviceGetCurrentClocksEventReasons(handle: int) -> int:
    _gpus()
    return 4
