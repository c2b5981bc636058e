"""`hexagent advise`: what this scheduler would have made of what somebody recorded on another stack."""

from typing import Final, NamedTuple

import numpy as np

from hexagent.cli.breakdown import shares_text, spent_columns
from hexagent.cli.failures import usage
from hexagent.cli.report import Row, console, error_console, table_of
from hexagent.cli.simulate.history import HistoryOptions, checked_policy, scenario_of
from hexagent.cli.simulate.receipts import Receipt, Simulated, receipt, simulated
from hexagent.cli.simulate.whatif import change_of_req, change_within
from hexagent.core.estimate.variants import table_of as step_table_of
from hexagent.core.units import US_PER_S
from hexagent.sim.changes import Scenario
from hexagent.sim.experiment.bootstrap import FloatArray, Interval
from hexagent.sim.metrics import summary
from hexagent.sim.workloads.trace import TraceFacts, TraceOptions, read_facts

_NEAR: Final = 1.5  # a simulated time is near the observed one within this factor


class AdviseOptions(NamedTuple):
    history: HistoryOptions
    policy: str
    baseline: str
    alpha: float
    worst: int  # receipts for so many that gain most, and as many that lose most
    seed: int


class Advice(NamedTuple):
    options: AdviseOptions
    scenario: Scenario
    facts: TraceFacts
    baseline: Simulated
    ours: Simulated

    def gain_us(self, workflow: str) -> int:
        """How much sooner the workflow ends than under the baseline."""
        return self.baseline.rows[workflow].jct_us - self.ours.rows[workflow].jct_us


def run_advise(options: AdviseOptions) -> list[Row]:
    """Simulate both, say what would change and why, and how far that is to be believed; one row a workflow."""
    scenario = scenario_of(options.history)
    history = options.history
    facts = read_facts(history.trace, TraceOptions(limit=history.limit, format=history.trace_format))
    names = [checked_policy(scenario, options.baseline, "baseline"), checked_policy(scenario, options.policy)]
    if names[0] == names[1]:
        raise usage("baseline", f"is {names[0]!r} as --policy is; give another")
    runs = []
    for name in names:
        with error_console().status(f"simulating {name}"):
            runs.append(simulated(scenario, name, options.seed))
    advice = Advice(options, scenario, facts, *runs)
    receipts = _receipts(advice)
    _show(advice, receipts)
    return [_row(advice, workflow, receipts.get(workflow)) for workflow in advice.baseline.rows]


def _receipts(advice: Advice) -> dict[str, Receipt]:
    """Of the workflows that gain most and of those that lose most, where something of them is known."""
    ranked = sorted(advice.baseline.rows, key=lambda name: (-advice.gain_us(name), name))
    worst = advice.options.worst
    gained = [name for name in ranked[:worst] if advice.gain_us(name) > 0]
    lost = [name for name in ranked[::-1][:worst] if advice.gain_us(name) < 0]
    found = {name: receipt(name, advice.baseline, advice.ours) for name in gained}
    found |= {name: receipt(name, advice.ours, advice.baseline) for name in lost}
    return {name: one for name, one in found.items() if one is not None}


def _show(advice: Advice, receipts: dict[str, Receipt]) -> None:
    out = console()
    cluster, workload = advice.scenario
    runs = (advice.baseline, advice.ours)
    title = f"{workload.name} on {cluster.name}: {len(workload.workflows)} workflows"
    out.print(table_of(title, [_summary(run, advice.options.alpha) for run in runs]))
    out.print(_difference(advice), markup=False)
    for run in runs:
        out.print(f"{run.policy}: {shares_text(run.spent)}", style="dim", markup=False)
    for heading, sign in (("gain", 1), ("lose", -1)):
        names = [name for name in receipts if advice.gain_us(name) * sign > 0]
        if names:
            out.print(table_of(f"The workflows that {heading} most", [_short(advice, name) for name in names]))
            for name in names:
                out.print(f"{name}: {receipts[name].text()}.", markup=False)
    out.print(_belief(advice), markup=False)
    for note in _notes(advice):
        out.print(f"- {note}", style="dim", markup=False)


def _summary(run: Simulated, alpha: float) -> Row:
    rows = list(run.rows.values())
    total = summary(rows)
    return {
        "policy": run.policy,
        "completed": total.completed,
        "req50": total.req50,
        "req95": total.req95,
        "req99": total.req99,
        f"within {alpha:g}": f"{sum(row.stretch <= alpha for row in rows) / len(rows):.1%}",
        "mean_jct_s": total.mean_jct_s,
    }


def _difference(advice: Advice) -> str:
    base, ours = (_stretches(run) for run in (advice.baseline, advice.ours))
    alpha = advice.options.alpha
    req, within = change_of_req(ours, base, 95), change_within(ours, base, alpha)
    sooner = sum(advice.gain_us(name) > 0 for name in advice.baseline.rows)
    return (
        f"With {advice.ours.policy} instead of {advice.baseline.policy} the SLO scale that 95 % of workflows meet"
        f" changes by {_percent(req)}, the share within {alpha:g} horizons by {_percent(within)} of all;"
        f" {sooner} of {len(base)} workflows end sooner."
    )


def _percent(found: Interval) -> str:
    return "{:+.1%} [{:+.1%}, {:+.1%}]".format(*found)


def _stretches(run: Simulated) -> FloatArray:
    return np.array([row.stretch for row in run.rows.values()])


def _short(advice: Advice, workflow: str) -> Row:
    before, after = advice.baseline.rows[workflow], advice.ours.rows[workflow]
    observed_us = advice.facts.jct_us.get(workflow)
    seen: Row = {} if observed_us is None else {"observed_s": observed_us / US_PER_S}
    return {
        "workflow": workflow,
        "calls": before.calls,
        **seen,
        "baseline_s": before.jct_us / US_PER_S,
        "here_s": after.jct_us / US_PER_S,
        "stretch": f"{before.stretch:.2f} -> {after.stretch:.2f}",
        "more or less of": _parts(advice, workflow),
    }


def _parts(advice: Advice, workflow: str) -> str:
    """What it spends less and more time on than under the baseline, the two largest parts."""
    before, after = advice.baseline.spent.get(workflow), advice.ours.spent.get(workflow)
    if before is None or after is None:
        return "-"
    changes = {name: ours - theirs for name, theirs, ours in zip(before._fields, before, after, strict=True)}
    largest = sorted(changes, key=lambda name: (-abs(changes[name]), name))[:2]
    return ", ".join(f"{name.removesuffix('_us')} {changes[name] / US_PER_S:+.1f} s" for name in largest)


def _belief(advice: Advice) -> str:
    """The simulated baseline beside what was observed."""
    observed = advice.facts.jct_us
    known = [row for row in advice.baseline.rows.values() if row.completed and row.workflow in observed]
    if not known:
        return "The trace does not say how long its workflows took, so the model is not compared with what happened."
    here = np.array([row.jct_us for row in known], dtype=float)
    there = np.array([max(observed[row.workflow], 1) for row in known], dtype=float)
    ratios = here / there
    low, middle, high = (float(value) for value in np.quantile(ratios, (0.1, 0.5, 0.9)))
    near = float(((ratios <= _NEAR) & (ratios >= 1 / _NEAR)).mean())
    order = f"; the orders of both correlate by {_rank_correlation(here, there):.2f}" if len(known) > 2 else ""
    return (
        f"Observed: {len(known)} workflows, {there.mean() / US_PER_S:.2f} s on average; simulated under"
        f" {advice.baseline.policy} they take {here.mean() / US_PER_S:.2f} s. Simulated over observed: median"
        f" {middle:.2f}, from {low:.2f} to {high:.2f} for the middle 80 %; {near:.0%} within a factor of"
        f" {_NEAR:g}{order}. Where this is far from 1, cluster, model or baseline are not those of your stack."
    )


def _rank_correlation(a: FloatArray, b: FloatArray) -> float:
    """Spearman's, ties in the order they come."""
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _notes(advice: Advice) -> list[str]:
    """What is true in this and what is assumed."""
    facts, cluster = advice.facts, advice.scenario.cluster
    tables = sorted({f"{i.gpu_type} {step_table_of(i, cluster.tables).source}" for i in cluster.instances})
    notes = [
        "Prompt and output lengths are the recorded ones. Schedulers do not know them beforehand; they learn.",
        f"Step times are those of tables ({', '.join(tables)}), with speeds of instances drawn by --seed.",
        "Engines are emulated; nothing was measured on your hardware.",
        f"{advice.baseline.policy} on {cluster.name} stands for your stack; it is not your stack.",
        "What models say, and when tools and people answer, is taken to be the same under every schedule.",
    ]
    if advice.options.history.rate:
        notes.append("Arrivals are those that --rate asks for, not the recorded ones.")
    elif not facts.arrivals:
        notes.append("Arrivals are not recorded: 10 a second are assumed; --rate sets others.")
    if len(advice.ours.graphs) < len(advice.ours.rows):
        notes.append(f"Of why, only the last {len(advice.ours.graphs)} workflows to finish are remembered.")
    if facts.drawn:
        notes.append(f"For {facts.drawn} of {facts.calls} calls the time of tools is not recorded but drawn.")
    return notes


def _row(advice: Advice, workflow: str, found: Receipt | None) -> Row:
    before = advice.baseline.rows[workflow]
    observed_us = advice.facts.jct_us.get(workflow)
    row: dict[str, str | int | float | bool | None] = {
        "workflow": workflow,
        "tenant": before.tenant,
        "calls": before.calls,
        "observed_jct_s": None if observed_us is None else observed_us / US_PER_S,
        "gain_s": advice.gain_us(workflow) / US_PER_S,
        "receipt": found.text() if found is not None else "",
    }
    for name, run in (("baseline", advice.baseline), ("policy", advice.ours)):
        ended = run.rows[workflow]
        row |= {name: run.policy, f"{name}_jct_s": ended.jct_us / US_PER_S}
        row[f"{name}_stretch"] = ended.stretch if ended.completed else None
        row |= {f"{name}_{part}": value for part, value in spent_columns(run.spent.get(workflow)).items()}
    return row
