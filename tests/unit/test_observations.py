"""Reports that cannot be true: refused with the row named, what was learned unharmed."""

from typing import Any

import pytest

from hexagent.core.errors import HexagentError, InvalidArgument, NotFound
from hexagent.core.estimate.learner import Learner
from hexagent.core.instance.io import InstanceLoad
from hexagent.core.instance.spec import InstanceSpec, LinkSpec, Role
from hexagent.core.instance.telemetry import SpeculationSample, StepSample, Telemetry, TransferSample

NOW_US = 3_600_000_000
SPEC = InstanceSpec(
    "d", "h100", 4, Role.DECODE, "llama-3.1-70b", "bf16", "bf16", 1_000, 32, 128, 8_192, LinkSpec(1, 0), "push", False
)
NO_LOAD = InstanceLoad(*[0] * len(InstanceLoad._fields))
GOOD = StepSample(1, 30_000, 0, 0, 8, 1_000)
MOVED = TransferSample("p", "d", NOW_US - 5_000, 5_000, 1_000, 6_000)


def report(*steps: StepSample, at_us: int = NOW_US, transfers: tuple[TransferSample, ...] = ()) -> Telemetry:
    return Telemetry("d", at_us, NO_LOAD, steps, transfers)


def bad(**changes: Any) -> Telemetry:
    return report(GOOD, GOOD._replace(**changes))


@pytest.mark.parametrize(
    ("telemetry", "field", "reason"),
    [
        (report(GOOD, at_us=2 * NOW_US), "at_us", "FROM_THE_FUTURE"),
        (bad(duration_us=-1), "steps[1].duration_us", "BAD_OBSERVATION"),
        (bad(duration_us=0), "steps[1].duration_us", "BAD_OBSERVATION"),
        (bad(duration_us=float("nan")), "steps[1].duration_us", "BAD_OBSERVATION"),
        (bad(duration_us=float("inf")), "steps[1].duration_us", "BAD_OBSERVATION"),
        (bad(steps=0), "steps[1].steps", "BAD_OBSERVATION"),
        (bad(prefill_tokens=-5), "steps[1].prefill_tokens", "BAD_OBSERVATION"),
        (bad(mean_context=-5), "steps[1].mean_context", "BAD_OBSERVATION"),
        (bad(decode_batch=0), "steps[1]", "BAD_OBSERVATION"),
        (
            report(GOOD)._replace(speculation=SpeculationSample(4, -1)),
            "speculation[0].accepted_tokens",
            "BAD_OBSERVATION",
        ),
        (report(GOOD)._replace(speculation=SpeculationSample(4, 5)), "speculation", "BAD_OBSERVATION"),
        (report(transfers=(MOVED, MOVED._replace(kv_bytes=-1))), "transfers[1].kv_bytes", "BAD_OBSERVATION"),
        (report(transfers=(MOVED._replace(start_us=2 * NOW_US),)), "transfers[0].start_us", "FROM_THE_FUTURE"),
    ],
)
def test_a_report_that_cannot_be_true_is_refused_as_a_whole(telemetry: Telemetry, field: str, reason: str) -> None:
    learner = Learner()
    learner.describe_instance(SPEC)
    learner.observe_telemetry(report(GOOD), NOW_US)
    before = learner.snapshot(NOW_US)
    assert before is not None
    with pytest.raises(InvalidArgument) as caught:
        learner.observe_telemetry(telemetry, NOW_US)
    assert (caught.value.field, caught.value.reason) == (field, reason)
    assert learner.snapshot(NOW_US) is None
    learner.observe_telemetry(report(GOOD), NOW_US)
    after = learner.snapshot(NOW_US)
    assert after is not None
    assert after.speeds[0].observations == before.speeds[0].observations + 1


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        (SPEC._replace(gpu_type="v100"), NotFound, "UNKNOWN_GPU"),
        (SPEC._replace(model="gpt-2"), NotFound, "UNKNOWN_MODEL"),
        (SPEC._replace(precision="int3"), InvalidArgument, "UNKNOWN_PRECISION"),
    ],
)
def test_an_instance_of_an_unknown_kind_is_refused(spec: InstanceSpec, error: type[HexagentError], reason: str) -> None:
    learner = Learner()
    with pytest.raises(error) as caught:
        learner.describe_instance(spec)
    assert caught.value.reason == reason
    learner.observe_telemetry(report(GOOD), NOW_US)  # of an instance that was never described: nothing to learn
    snapshot = learner.snapshot(NOW_US)
    assert snapshot is not None
    assert snapshot.speeds == ()
