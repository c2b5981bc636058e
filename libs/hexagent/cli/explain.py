"""`hexagent explain`: why a call ran where and when it ran, what was predicted, and what happened."""

from typing import Final

from rich.console import Console

from hexagent.cli.failures import usage
from hexagent.cli.ports import PORT_MAX
from hexagent.cli.report import Row, console, table_of
from hexagent.client.explain import CallExplanation
from hexagent.core.ids import CallId, checked_id
from hexagent.core.scheduling.record import Candidate, DecisionKind, DecisionRecord
from hexagent.core.scheduling.shadows import ShadowChoice
from hexagent.core.units import US_PER_S
from hexagent.core.workflow.model import CallOutcome, CallTimes

_KINDS: Final = {
    DecisionKind.DISPATCH: "dispatched",
    DecisionKind.BIND: "decode instance bound",
    DecisionKind.REFUSE: "refused",
}
# What is predicted, and which of the measured times answers it.
_STEPS: Final = (
    ("prefill starts", "prefill_start_us", "prefill_start_us"),
    ("prefill ends", "prefill_end_us", "prefill_end_us"),
    ("KV has arrived", "transfer_end_us", "transfer_end_us"),
    ("finished", "finish_us", "end_us"),
)


def parsed_call(text: str) -> CallId:
    """`WORKFLOW/NODE`. `InvalidArgument` naming the argument."""
    workflow, slash, node = text.partition("/")
    if not slash or not workflow or not node:
        raise usage("call", f"must be WORKFLOW/NODE, like bfcl-s1-000000/c0, or WORKFLOW; got {text!r}")
    return CallId(checked_id(workflow, "call"), checked_id(node, "call"))


def explanation_rows(explanation: CallExplanation) -> list[Row]:
    """One row a decision, with what was predicted and, for the last of the call, what happened."""
    rows: list[Row] = []
    last = explanation.records[-1] if explanation.records else None
    for record in explanation.records:
        row: dict[str, str | int | float | bool | None] = {
            "call": str(explanation.call),
            "model": explanation.model,
            "lora": explanation.needs.lora,
            "min_precision": explanation.needs.min_precision,
            "sequence": record.sequence,
            "attempt": record.ticket.attempt,
            "decision": record.kind.name.lower(),
            "policy": record.policy,
            "at_s": record.at_us / US_PER_S,
            "prefill_instance": record.chosen.prefill_instance,
            "decode_instance": record.chosen.decode_instance,
            "position": record.position,
            "waiting": record.waiting,
            "workflow_age_s": record.age_us / US_PER_S,
            "workflow_horizon_s": record.horizon_us / US_PER_S,
            "prompt_tokens": record.prompt_tokens,
            "predicted_output_tokens": record.predicted_output_tokens,
            "snapshot_revision": record.snapshot_revision,
            "others": len(record.others),
            "reason": record.reason,
            "shadows": "; ".join(_shadow_text(c) for c in explanation.shadows if c.at_us == record.at_us),
        }
        times = explanation.outcome.times if explanation.outcome is not None and record is last else None
        for _, predicted, actual in _STEPS:
            name = predicted.removesuffix("_us")
            row[f"predicted_{name}_s"] = _seconds(getattr(record.chosen, predicted))
            row[f"actual_{name}_s"] = _seconds(getattr(times, actual)) if times is not None else None
        rows.append(row)
    return rows


def show_explanation(explanation: CallExplanation) -> None:
    """The story of the call, oldest first."""
    out = console()
    out.print(f"[bold]{explanation.call}[/bold]: {explanation.status.name.lower()}")
    out.print(_asked(explanation))
    if explanation.position:
        why = explanation.waiting_reason or "its turn"
        out.print(f"It waits at place {explanation.position} of the queue: {why}.")
    if not explanation.records:
        out.print("The scheduler has no record of a decision about it.")
    for record in explanation.records:
        _show_record(out, record)
    if explanation.records and explanation.records[-1].kind is not DecisionKind.REFUSE:
        _show_prediction(out, explanation.records[-1], explanation.outcome)
    if explanation.outcome is not None:
        _show_outcome(out, explanation.outcome)
    for choice in explanation.shadows:
        out.print(f"Shadow: {_shadow_text(choice)}")


def _asked(explanation: CallExplanation) -> str:
    """What it is to run on."""
    lora, precision = explanation.needs
    adapter = f" with adapter {lora}" if lora else ""
    weights = f", weights of {precision} at least" if precision else ""
    return f"It runs on {explanation.model}{adapter}{weights}."


def _show_record(out: Console, record: DecisionRecord) -> None:
    chosen = record.chosen
    revision = record.snapshot_revision
    estimates = f"estimates of revision {revision}" if revision else "no fresh snapshot, so tables alone"
    place = f"place {record.position} of {record.waiting} waiting" if record.position else "at once"
    if record.kind is DecisionKind.REFUSE:
        place = f"{record.waiting} waiting"
    where = f"prefill on {chosen.prefill_instance or '-'}, decode on {chosen.decode_instance or '-'}"
    out.print(
        f"\n{_at(record.at_us)} [bold]{_KINDS[record.kind]}[/bold] by {record.policy}"
        f" (attempt {record.ticket.attempt}): {where if record.kind is not DecisionKind.REFUSE else record.reason}"
    )
    out.print(
        f"  Order: {place}; the workflow was {record.age_us / US_PER_S:.2f} s old with a horizon of"
        f" {record.horizon_us / US_PER_S:.2f} s.",
    )
    out.print(
        f"  Size: {record.prompt_tokens} prompt tokens, {record.predicted_output_tokens} output tokens predicted,"
        f" room reserved for {record.reserve_output_tokens}; {estimates}."
    )
    if record.others:
        rows = [_candidate_row("chosen", chosen)]
        rows += [_candidate_row(f"other {i}", other) for i, other in enumerate(record.others, 1)]
        out.print(table_of("  Placements that were considered (predicted, s of model time)", rows))


def _candidate_row(name: str, candidate: Candidate) -> Row:
    return {
        "placement": name,
        "prefill": candidate.prefill_instance,
        "decode": candidate.decode_instance,
        "start": _seconds(candidate.prefill_start_us),
        "prefilled": _seconds(candidate.prefill_end_us),
        "KV moved": _seconds(candidate.transfer_end_us),
        "finish": _seconds(candidate.finish_us),
    }


def _show_prediction(out: Console, record: DecisionRecord, outcome: CallOutcome | None) -> None:
    """Predicted beside measured, each step."""
    times = outcome.times if outcome is not None else CallTimes()
    rows: list[Row] = []
    for step, predicted, actual in _STEPS:
        foreseen, happened = _seconds(getattr(record.chosen, predicted)), _seconds(getattr(times, actual))
        rows.append(
            {
                "step": step,
                "predicted_s": foreseen,
                "happened_s": happened,
                "late_s": happened - foreseen if foreseen is not None and happened is not None else None,
            }
        )
    out.print()
    out.print(table_of("Predicted and happened (model time)", rows, right=("predicted_s", "happened_s", "late_s")))


def _shadow_text(choice: ShadowChoice) -> str:
    there = f"prefill on {choice.prefill_instance}, decode on {choice.decode_instance}"
    would = f"would have started it, {there}" if choice.prefill_instance else "would not have started it"
    when = "when it was started" if choice.made else "when it was not"
    return f"{_at(choice.at_us)}, {when}, {choice.policy} {would}."


def _show_outcome(out: Console, outcome: CallOutcome) -> None:
    if outcome.reason:
        out.print(f"It ended with {outcome.reason}: {outcome.message}")
    out.print(
        f"{outcome.prompt_tokens} prompt tokens, {outcome.cached_tokens} of them from the prefix cache;"
        f" {outcome.output_tokens} output tokens; {outcome.kv_bytes / 1e6:.1f} MB of KV moved from"
        f" {outcome.prefill_instance or '-'} to {outcome.decode_instance or '-'}."
    )
    times = outcome.times
    if times.first_token_us and times.dispatched_us:
        out.print(
            f"First token {(times.first_token_us - times.dispatched_us) / US_PER_S:.3f} s and last"
            f" {(times.end_us - times.dispatched_us) / US_PER_S:.3f} s after the dispatch."
        )


def _at(us: int) -> str:
    return f"t={us / US_PER_S:.3f} s"


def _seconds(us: int) -> float | None:
    """None for a step that did not happen or was not predicted."""
    return us / US_PER_S if us else None


def scheduler_address(tracker_address: str, given: str = "") -> str:
    """The address given, or where `hexagent up` puts the scheduler: on the port after the tracker's.

    `InvalidArgument` names the option that is no host:port.
    """
    if given:
        parsed_address(given, "scheduler", PORT_MAX)
        return given
    host, port = parsed_address(tracker_address, "address", PORT_MAX - 1)
    return f"{host}:{port + 1}"


def parsed_address(address: str, option: str, port_max: int) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= port_max:
        raise usage(option, f"must be host:port, the port from 1 to {port_max}; got {address!r}")
    return host, int(port)
