"""What the scheduler, the estimator and the agents refuse, as data: one row a refusal."""

from typing import Any, Final

import grpc

from hexagent.api.common.v1 import enums_pb2, ids_pb2
from hexagent.api.estimator.v1 import estimator_service_pb2 as estimator
from hexagent.api.scheduler.v1 import scheduler_service_pb2 as scheduler
from hexagent.api.worker.v1 import attempt_pb2
from hexagent.api.worker.v1 import worker_service_pb2 as worker
from tests.integration.refusal_cases import BAD_ID, FINISHED, INVALID, NOT_FOUND, OPEN, STATE, Call, Case, node_of

SCHEDULER: Final = "hexagent.api.scheduler.v1.SchedulerService"
ESTIMATOR: Final = "hexagent.api.estimator.v1.EstimatorService"
WORKER: Final = "hexagent.api.worker.v1.WorkerService"  # the agent of the decode instances

MODEL: Final = "llama-3.1-70b"
DECODE: Final = ("d-a100-0", "d-h100-0", "d-h200-0")  # every decode instance of the cluster
NOBODY: Final = "d-b300-7"
OLD_EPOCH: Final = 1  # the stack's scheduler has been started again since
INT32_MAX: Final = 2**31 - 1

# Their requests hold nothing that could be wrong.
CANNOT_REFUSE: Final = {
    f"{SCHEDULER}.GetCluster": "its request is empty",
    f"{WORKER}.DescribeAgent": "its request is empty",
    f"{WORKER}.HandOff": "a no is an answer",
    f"{WORKER}.PullKv": "a no is an answer",
}


def scheduler_cases() -> list[Case]:
    def row(method: str, cause: str, request: Any, code: grpc.StatusCode, reason: str, field: str = "") -> Case:
        return Case(f"{SCHEDULER}.{method}", cause, request, code, reason, field)

    def explain(workflow_id: str, node_id: str) -> scheduler.ExplainCallRequest:
        return scheduler.ExplainCallRequest(call=node_of(workflow_id, node_id))

    page, drain = scheduler.ListQueueRequest, scheduler.DrainInstanceRequest
    cordons: list[Call] = [
        (f"{SCHEDULER}.CordonInstance", scheduler.CordonInstanceRequest(instance_id=d)) for d in DECODE[:-1]
    ]
    uncordons: list[Call] = [
        (f"{SCHEDULER}.UncordonInstance", scheduler.UncordonInstanceRequest(instance_id=d)) for d in DECODE[:-1]
    ]
    last = row(
        "DrainInstance", "the last of its phase", drain(instance_id=DECODE[-1]), STATE, "LAST_INSTANCE", "instance_id"
    )
    flip, prefill = scheduler.FlipInstanceRequest, enums_pb2.ROLE_PREFILL
    last_of_role = flip(instance_id=DECODE[-1], role=prefill)
    flips = [
        row("FlipInstance", "the last of its role", last_of_role, STATE, "LAST_INSTANCE", "instance_id"),
        row("FlipInstance", "unspecified role", flip(instance_id=DECODE[0]), INVALID, "BAD_ENUM", "role"),
        row(
            "FlipInstance",
            "role that is both",
            flip(instance_id=DECODE[0], role=enums_pb2.ROLE_BOTH),
            INVALID,
            "BAD_ROLE",
            "role",
        ),
    ]
    flips[0] = flips[0]._replace(before=tuple(cordons), after=tuple(uncordons))
    cases = [
        *flips,
        row("ExplainCall", "no call", explain("", ""), INVALID, "BAD_ID", "call.workflow_id"),
        row("ExplainCall", "bad node id", explain(OPEN, BAD_ID), INVALID, "BAD_ID", "call.node_id"),
        row("ExplainCall", "unknown call", explain(OPEN, "nobody"), NOT_FOUND, "UNKNOWN_CALL", "call"),
        row("ListQueue", "negative page size", page(page_size=-1), INVALID, "BAD_PAGE_SIZE", "page_size"),
        row("ListQueue", "page size above 1000", page(page_size=1_001), INVALID, "BAD_PAGE_SIZE", "page_size"),
        row("ListQueue", "made-up page token", page(page_token="next"), INVALID, "BAD_PAGE_TOKEN", "page_token"),
        row("ListQueue", "page token beyond any", page(page_token="9" * 30), INVALID, "BAD_PAGE_TOKEN", "page_token"),
        row(
            "ListQueue", "page token without end", page(page_token="9" * 5_000), INVALID, "BAD_PAGE_TOKEN", "page_token"
        ),
        last._replace(before=tuple(cordons), after=tuple(uncordons)),
    ]
    for method in ("CordonInstance", "UncordonInstance", "DrainInstance", "FlipInstance"):
        kind = getattr(scheduler, f"{method}Request")
        cases += [
            row(method, "no instance", kind(), NOT_FOUND, "UNKNOWN_INSTANCE", "instance_id"),
            row(method, "unknown instance", kind(instance_id=NOBODY), NOT_FOUND, "UNKNOWN_INSTANCE", "instance_id"),
        ]
    return cases


def estimator_cases() -> list[Case]:
    def row(method: str, cause: str, request: Any, code: grpc.StatusCode, reason: str, field: str = "") -> Case:
        return Case(f"{ESTIMATOR}.{method}", cause, request, code, reason, field)

    def estimate(**changes: Any) -> estimator.EstimateRequest:
        return estimator.EstimateRequest(**{"model": MODEL, "prompt_tokens": 100, "max_tokens": 10, **changes})

    def wrong(cause: str, reason: str, field: str, **changes: Any) -> Case:
        return row("Estimate", cause, estimate(**changes), INVALID, reason, field)

    pair = estimator.Pair
    unknown_pair = [pair(prefill_instance="p-a100-0"), pair(prefill_instance="p-a100-0", decode_instance=NOBODY)]
    counts = ("prompt_tokens", "cached_tokens", "max_tokens", "output_tokens", "decode_batch")
    return [
        row("Estimate", "unknown model", estimate(model="gpt-17"), NOT_FOUND, "UNKNOWN_MODEL", "model"),
        row("Estimate", "no model", estimate(model=""), NOT_FOUND, "UNKNOWN_MODEL", "model"),
        *(wrong(f"negative {field}", "NEGATIVE_TOKENS", field, **{field: -1}) for field in counts),
        wrong("no prompt", "ZERO_TOKENS", "prompt_tokens", prompt_tokens=0),
        wrong("no output", "ZERO_TOKENS", "max_tokens", max_tokens=0),
        wrong("all of the prompt cached", "BAD_PROMPT", "cached_tokens", cached_tokens=100),
        wrong("prompt beyond any", "TOO_MANY_TOKENS", "prompt_tokens", prompt_tokens=INT32_MAX),
        wrong("output beyond any", "TOO_MANY_TOKENS", "output_tokens", output_tokens=INT32_MAX),
        wrong("batch beyond any", "TOO_MANY_TOKENS", "decode_batch", decode_batch=INT32_MAX),
        wrong("pair without prefill side", "BAD_PAIR", "pairs[0].prefill", pairs=[pair(decode_instance=DECODE[0])]),
        row("Estimate", "unknown instance", estimate(pairs=unknown_pair), NOT_FOUND, "UNKNOWN_INSTANCE",
            "pairs[1].decode_instance"),
        row("Estimate", "unknown GPU type", estimate(pairs=[pair(prefill_gpu_type="b300")]), NOT_FOUND,
            "UNKNOWN_INSTANCE",
            "pairs[0].prefill_gpu_type"),
        *(
            row("EstimateResidual", cause, estimator.EstimateResidualRequest(workflow_id=name), NOT_FOUND,
                "UNKNOWN_WORKFLOW", "workflow_id")
            for cause, name in (("unknown workflow", "nobody"), ("workflow that has ended", FINISHED))
        ),
        row("EstimateResidual", "bad workflow id", estimator.EstimateResidualRequest(workflow_id=BAD_ID), INVALID,
            "BAD_ID", "workflow_id"),
        row("GetCalibration", "unknown instance", estimator.GetCalibrationRequest(instance_id=NOBODY), NOT_FOUND,
            "UNKNOWN_INSTANCE", "instance_id"),
        row("GetSnapshot", "unknown revision", estimator.GetSnapshotRequest(revision=2**40), NOT_FOUND,
            "UNKNOWN_REVISION", "revision"),
        row("GetSnapshot", "negative revision", estimator.GetSnapshotRequest(revision=-1), NOT_FOUND,
            "UNKNOWN_REVISION", "revision"),
    ]  # fmt: skip


def worker_cases() -> list[Case]:
    def row(method: str, cause: str, request: Any, code: grpc.StatusCode, reason: str, field: str = "") -> Case:
        return Case(f"{WORKER}.{method}", cause, request, code, reason, field)

    def session(**first: Any) -> worker.SessionRequest:
        return worker.SessionRequest(**first)

    return [
        row("Session", "no hello", session(), STATE, "NO_HELLO", "hello"),
        row("Session", "no epoch", session(hello=worker.Hello()), INVALID, "BAD_EPOCH", "hello.epoch"),
        row("Session", "negative epoch", session(hello=worker.Hello(epoch=-1)), INVALID, "BAD_EPOCH", "hello.epoch"),
        row("Session", "epoch of an older scheduler", session(hello=worker.Hello(epoch=OLD_EPOCH)),
            grpc.StatusCode.ABORTED, "STALE_EPOCH", "hello.epoch"),
        row("WarmUp", "no ticket", worker.WarmUpRequest(), INVALID, "NO_TICKET", "hand_off.attempt.ticket"),
        row("AbortCall", "no ticket", worker.AbortCallRequest(), INVALID, "NO_TICKET", "ticket"),
    ]  # fmt: skip


def stream_answers() -> dict[str, list[tuple[Any, str]]]:
    """By RPC between agents, requests that no agent makes, and the reason each is answered with."""
    ticket = ids_pb2.Ticket(call=node_of(OPEN, "nobody"), attempt=1, epoch=1)
    no_call = attempt_pb2.AttemptSpec(ticket=ids_pb2.Ticket(attempt=1, epoch=1))

    def hand_off(payload: bytes = b"", **changes: Any) -> worker.HandOffRequest:
        attempt = attempt_pb2.AttemptSpec(ticket=ticket, payload=payload, prompt_tokens=1, max_tokens=1)
        return worker.HandOffRequest(
            **{"attempt": attempt, "target_instance": DECODE[0], "first_tokens": 1, "kv_ready": True, **changes}
        )

    return {
        f"{WORKER}.HandOff": [
            (hand_off(attempt=None), "NO_TICKET"),
            (hand_off(attempt=no_call), "NO_TICKET"),
            (hand_off(first_tokens=0), "NO_TOKEN"),
            (hand_off(b"\xff\xff"), "BAD_MESSAGE"),
        ],
        f"{WORKER}.PullKv": [
            (worker.PullKvRequest(), "NO_TICKET"),
            (worker.PullKvRequest(ticket=ticket), "BAD_LINK"),
        ],
    }
