"""What a call is charged with."""

from hexagent.core.ids import CallId
from hexagent.core.workflow.model import CallOutcome, CallTimes, NodeStatus
from hexagent_services.dag_tracker.usage import Account


def test_gpu_time_of_decode_is_the_share_of_the_batch_where_it_is_known() -> None:
    times = CallTimes(prefill_start_us=10, prefill_end_us=30, decode_start_us=40, end_us=100)
    outcome = CallOutcome(
        CallId("w", "a"), 1, NodeStatus.SUCCEEDED, prefill_instance="p", decode_instance="d", times=times, decode_us=15
    )
    account = Account()
    account.add(outcome, {"p": 4, "d": 2})
    assert (account.prefill_gpu_us, account.decode_gpu_us) == (80, 30)
    account.add(outcome._replace(decode_us=0), {"p": 4, "d": 2})
    assert (account.prefill_gpu_us, account.decode_gpu_us) == (160, 150)
