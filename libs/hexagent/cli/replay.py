"""`hexagent replay`: decide again from a journal, and see what another policy or other weights would have done."""

from collections.abc import Sequence
from pathlib import Path

from hexagent.cli.report import Row, console, table_of, write_json
from hexagent.core.errors import InvalidArgument
from hexagent.core.policy.profile import Profile, parse_profile
from hexagent.core.scheduling.effects import Choice
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.scheduling.replay import Replayed, replay
from hexagent.runtime.journal import read_journal
from hexagent.wire.journal import JournalHeader

SHOWN_MAX = 20  # rows of a table; the JSON has them all


def run_replay(journal: Path, policy: str, profile: Path | None, json: Path | None) -> bool:
    """Print and write what came out; False where the journal's own decisions were not made again."""
    entries = read_journal(journal)
    first = next(entries, None)
    if first is None or not isinstance(first.event, JournalHeader):
        raise InvalidArgument(
            f"{journal} does not begin with a journal's header", reason="BAD_JOURNAL", field="journal"
        )
    header = first.event
    others: tuple[tuple[str, Profile], ...] = ()
    if policy or profile:
        tuned = parse_profile(profile_text(profile), str(profile)) if profile else header.profile
        others = ((policy or header.policy, tuned),)
    history = ((e.now_us, e.event) for e in entries if not isinstance(e.event, JournalHeader))
    result = replay(header.cluster, header.policy, header.profile, history, others)
    rows = shadow_rows(result) if others else difference_rows(result)
    _show(header, result, rows, bool(others))
    write_json(json, "replay", header.cluster.seed, rows)
    return not result.differences


def difference_rows(result: Replayed) -> list[Row]:
    """One row a decision that was recorded but not made again, or the other way round."""
    return [
        {
            "call": str((d.recorded or d.replayed).ticket.call),  # type: ignore[union-attr]
            "recorded": _decision(d.recorded),
            "replayed": _decision(d.replayed),
        }
        for d in result.differences
    ]


def shadow_rows(result: Replayed) -> list[Row]:
    """One row a point at which the other policy would have started something else."""
    return [
        {"at_s": s.at_us / 1e6, "policy": s.policy, "made": _choices(s.made), "would_make": _choices(s.would_make)}
        for s in result.shadowed
    ]


def _show(header: JournalHeader, result: Replayed, rows: Sequence[Row], compared: bool) -> None:
    out = console()
    verdict = "bit-identical" if not result.differences else f"[red]{len(result.differences)} differ[/red]"
    out.print(
        f"{result.decisions} decisions of {header.policy} from {result.inputs} inputs, made again: {verdict}"
        f" (written by version {header.version})"
    )
    if compared:
        out.print(f"At {len(result.shadowed)} points the other policy would have started something else.")
    if rows:
        shown = rows[:SHOWN_MAX]
        out.print(table_of(f"first {len(shown)} of {len(rows)}", shown))


def _decision(record: DecisionRecord | None) -> str:
    if record is None:
        return "none"
    chosen = record.chosen
    return f"{chosen.prefill_instance} > {chosen.decode_instance} position {record.position} key {record.key}"


def _choices(choices: tuple[Choice, ...]) -> str:
    return ", ".join(f"{c.call} on {c.prefill_instance} > {c.decode_instance}" for c in choices) or "nothing"


def profile_text(path: Path) -> str:
    """The content of a profile's file; `InvalidArgument` (NO_PROFILE) if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error}", reason="NO_PROFILE", field="profile") from error
