"""The GPUs of an agent's real engines as the driver knows them: what they are, and how they do.

Read through NVML, NVIDIA's library beside the driver. Where there is none, instances are what the cluster file says
and their devices go unreported. NVML numbers GPUs by PCI bus and knows nothing of `CUDA_VISIBLE_DEVICES`.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from hexagent.core.errors import InvalidArgument
from hexagent.core.instance.spec import InstanceSpec
from hexagent.wire.telemetry import DeviceSample
from hexagent_services.worker_agent.engines_file import EngineTable

log = logging.getLogger(__name__)

PERIOD_S: Final = 1.0  # of wall time between two readings
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"

_GIB: Final = 1 << 30
# Words of the driver's names, as in "NVIDIA A100-SXM4-80GB" or "NVIDIA H100 80GB HBM3"; other types go unchecked.
_KNOWN: Final = ("a100", "h100", "h200", "b200", "l40s")
_H200_BYTES_MIN: Final = 100 * _GIB  # H200 has 141 GB, H100 at most 94


class Devices:
    """Handles of the GPUs of each instance, and their last readings."""

    def __init__(self, nvml: Any | None, handles: Mapping[str, tuple[Any, ...]]) -> None:
        self._nvml = nvml
        self._handles = handles
        self._samples: dict[str, tuple[DeviceSample, ...]] = {}

    def of(self, instance_id: str) -> tuple[DeviceSample, ...]:
        """The last readings of an instance's GPUs, in rank order; empty where there are none."""
        return self._samples.get(instance_id, ())

    async def run(self) -> None:
        """Read again and again until cancelled; on a thread, as a driver may take its time."""
        while self._handles:
            await asyncio.to_thread(self.read)
            await asyncio.sleep(PERIOD_S)

    async def close(self) -> None:
        """Let go of the library."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def read(self) -> None:
        """Take one reading of every GPU."""
        self._samples = {
            instance_id: tuple(read_device(self._nvml, handle) for handle in handles)
            for instance_id, handles in self._handles.items()
        }


def find_devices(instances: tuple[InstanceSpec, ...], tables: Mapping[str, EngineTable]) -> Devices:
    """The GPUs of those instances whose engines run on this machine. One that sees none, as a fake may, has none.

    `InvalidArgument`: OTHER_GPU where the driver says another type than the cluster file, NO_SUCH_GPU, TOO_FEW_GPUS.
    """
    here = [spec for spec in instances if spec.instance_id in tables and not tables[spec.instance_id].url]
    nvml = _opened() if here else None
    if nvml is None:
        return Devices(None, {})
    handles = {}
    for spec in here:
        visible = tables[spec.instance_id].environ.get(VISIBLE, os.environ.get(VISIBLE))
        if visible != "":
            handles[spec.instance_id] = _handles(nvml, spec, visible)
    return Devices(nvml, handles)


def read_device(nvml: Any, handle: Any) -> DeviceSample:
    """What the driver says of a GPU; None for what it does not know."""

    def known(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except nvml.NVMLError:
            return None

    memory = known(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    rates = known(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    milliwatts = known(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    celsius = known(lambda: nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU))
    if celsius is None:  # a driver from before that call
        celsius = known(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return DeviceSample(
        utilization_percent=rates and float(rates.gpu),
        memory_used_bytes=memory and memory.used,
        memory_total_bytes=memory and memory.total,
        power_watts=None if milliwatts is None else milliwatts / 1_000,
        temperature_celsius=None if celsius is None else float(celsius),
        sm_clock_mhz=known(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        throttle_reasons=known(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
    )


def gpu_type_of(name: str, memory_bytes: int) -> str:
    """The type behind a driver's name, "" for one that is not known. H200 and H100 are told apart by memory too."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    found = next((known for known in _KNOWN if known in words), "")
    if found in ("h100", "h200"):
        return "h200" if memory_bytes >= _H200_BYTES_MIN else "h100"
    return found


def _opened() -> Any | None:
    """The library, None where there is no driver."""
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.warning("no NVML, so GPUs are taken for what the cluster file says: %s", error)
        return None
    return nvml


def _handles(nvml: Any, spec: InstanceSpec, visible: str | None) -> tuple[Any, ...]:
    """The instance's GPUs: the first `tp` of those it may see, each an index or a UUID in full; None: it sees all."""
    names = [str(i) for i in range(spec.tp)] if visible is None else [name.strip() for name in visible.split(",")]
    if len(names) < spec.tp:
        raise _bad(spec, "TOO_FEW_GPUS", f"{VISIBLE}={visible} names {len(names)} GPUs; tp is {spec.tp}")
    return tuple(_handle(nvml, spec, name) for name in names[: spec.tp])


def _handle(nvml: Any, spec: InstanceSpec, index: str) -> Any:
    """Of a GPU that is of the instance's type."""
    try:
        by = nvml.nvmlDeviceGetHandleByIndex if index.isdecimal() else nvml.nvmlDeviceGetHandleByUUID
        handle = by(int(index) if index.isdecimal() else index)
        name, memory_bytes = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetMemoryInfo(handle).total
    except nvml.NVMLError as error:
        raise _bad(spec, "NO_SUCH_GPU", f"the driver knows no GPU {index}: {error}") from None
    if spec.gpu_type in _KNOWN and gpu_type_of(name, memory_bytes) != spec.gpu_type:
        text = f"the cluster file says {spec.gpu_type}, the driver {name} with {memory_bytes / _GIB:.0f} GiB"
        raise _bad(spec, "OTHER_GPU", text)
    return handle


def _bad(spec: InstanceSpec, reason: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"{spec.instance_id}: {text}", reason=reason, field=f"{spec.instance_id}.gpu")
