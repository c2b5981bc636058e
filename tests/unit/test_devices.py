"""What an agent makes of the driver beside it."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hexagent.core.errors import InvalidArgument
from hexagent.core.instance.spec import Role
from hexagent.wire.telemetry import DeviceSample
from hexagent_services.worker_agent.devices import Devices, find_devices, gpu_type_of
from hexagent_services.worker_agent.engines_file import EngineTable
from tests.contract.engines import spec

FAKE = Path(__file__).parents[1] / "fakes" / "nvml" / "pynvml.py"
H100, H200, A100 = "NVIDIA H100 80GB HBM3=80", "NVIDIA H200=141", "NVIDIA A100-SXM4-80GB=80"
TWO = spec("two", Role.DECODE)._replace(gpu_type="h100", tp=2)


def loaded_fake() -> ModuleType:
    found = importlib.util.spec_from_file_location("pynvml", FAKE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """In the library's place, without a driver until a test names GPUs."""
    module = loaded_fake()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.delenv("FAKE_GPUS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return module


def devices(visible: str | None = None, gpu_type: str = "h100", **table: str) -> Devices:
    """Of one instance with two GPUs."""
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    engine = EngineTable.model_validate({"kind": "trtllm-serve", "environ": environ, **table})
    return find_devices((TWO._replace(gpu_type=gpu_type), spec("emulated", Role.PREFILL)), {"two": engine})


def readings(found: Devices) -> tuple[DeviceSample, ...]:
    """Of that instance, once."""
    found.read()
    return found.of("two")


def test_the_fake_has_what_the_library_has() -> None:
    fake = loaded_fake()
    library = importlib.import_module("pynvml")
    names = [name for name in vars(fake) if name.lower().startswith("nvml")]
    assert len(names) > 15
    for name in names:
        mine, theirs = getattr(fake, name), getattr(library, name)
        if inspect.isfunction(mine):
            assert list(inspect.signature(mine).parameters) == list(inspect.signature(theirs).parameters), name
        elif isinstance(mine, type):
            assert issubclass(theirs, library.NVMLError), name
        else:
            assert mine == theirs, name


def test_without_a_driver_gpus_are_what_the_cluster_file_says(fake: ModuleType) -> None:
    assert readings(devices(gpu_type="h200")) == ()


def test_gpus_are_read_in_the_order_the_engine_sees_them(fake: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GPUS", ",".join((A100, H100, H100, H100)))
    first, second = readings(devices("3, GPU-1"))
    assert (first.temperature_celsius, second.temperature_celsius) == (43.0, 41.0)
    assert first == DeviceSample(0.0, 1 << 30, 80 << 30, 303.0, 43.0, None, 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,3")  # the agent's own, where the engine has none
    assert [device.temperature_celsius for device in readings(devices())] == [41.0, 42.0]


@pytest.mark.parametrize(
    ("visible", "reason", "said"),
    [
        (None, "OTHER_GPU", "the cluster file says h100, the driver NVIDIA H200 with 141 GiB"),
        ("1,2", "OTHER_GPU", "the driver NVIDIA A100-SXM4-80GB with 80 GiB"),
        ("1", "TOO_FEW_GPUS", "CUDA_VISIBLE_DEVICES=1 names 1 GPUs; tp is 2"),
        ("1,9", "NO_SUCH_GPU", "the driver knows no GPU 9: Invalid Argument"),
        ("GPU-1,GPU-", "NO_SUCH_GPU", "the driver knows no GPU GPU-: Not Found"),
    ],
)
def test_gpus_that_are_not_as_configured_are_refused(
    fake: ModuleType, monkeypatch: pytest.MonkeyPatch, visible: str | None, reason: str, said: str
) -> None:
    monkeypatch.setenv("FAKE_GPUS", ",".join((H200, H100, A100)))
    with pytest.raises(InvalidArgument) as caught:
        devices(visible)
    assert (caught.value.reason, caught.value.field) == (reason, "two.gpu")
    assert said in caught.value.message


def test_what_does_not_run_here_is_not_looked_for(fake: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GPUS", A100)
    assert readings(devices(url="http://elsewhere:8000")) == ()
    assert readings(devices("")) == ()  # an engine that sees no GPU, as a fake one


@pytest.mark.parametrize(
    ("name", "gib", "found"),
    [
        ("NVIDIA A100-SXM4-80GB", 80, "a100"),
        ("NVIDIA H100 80GB HBM3", 80, "h100"),
        ("NVIDIA H100 NVL", 94, "h100"),
        ("NVIDIA H200", 140, "h200"),
        ("NVIDIA H100", 140, "h200"),
        ("NVIDIA L40S", 45, "l40s"),
        ("NVIDIA L40", 45, ""),
        ("NVIDIA GH200 480GB", 95, ""),
    ],
)
def test_types_by_name_and_memory(name: str, gib: int, found: str) -> None:
    assert gpu_type_of(name, gib << 30) == found
