"""Deadlines that have passed: nothing is gained by one, under any order."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hexagent.core.policy.registry import known
from hexagent.core.workflow.events import WorkflowChanged
from tests.sim.cases import MODEL, Desk, decodes, prefills

OTHERS = st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(100, 4_000)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    policy=st.sampled_from(known()), others=OTHERS, late=st.tuples(st.integers(0, 2_000_000), st.integers(100, 4_000))
)
def test_an_expired_deadline_never_brings_a_call_forward(
    policy: str, others: list[tuple[int, int]], late: tuple[int, int]
) -> None:
    d = Desk(prefills("h100") + decodes("h100"), policy, start=False)
    arrivals = sorted(
        [(at_us, f"w{i}", prompt) for i, (at_us, prompt) in enumerate(others)] + [(late[0], "late", late[1])]
    )
    for at_us, name, prompt in arrivals:
        d.start(name, at_us)
        d.reveal(name, "n", now_us=at_us, prompt=prompt)
    now_us, order = 4_000_000, d.core.policy.order

    def place() -> int:
        ages = d.core.waiting[MODEL].ages(now_us)
        scores = order.scores(ages, np.full(len(ages.calls), now_us + 500_000, dtype=np.int64))
        ranked = [ages.calls[row].call_id.workflow_id for row in scores.argsort(kind="stable").tolist()]
        return ranked.index("late")

    without = place()
    d.tell(WorkflowChanged("late", 0, 0, now_us - 1, False, 3_000_000), 3_000_000)
    assert place() >= without
    d.tell(WorkflowChanged("late", 0, 1_000, now_us - 1, False, 3_000_000), 3_000_000)
    assert place() >= without
