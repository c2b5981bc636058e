"""What calls are charged: GPU time by the price of the GPU."""

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.instance.spec import GPU_PRICES_MILLI, ClusterSpec
from hexagent.core.scheduling.ledger import Attempt
from hexagent.core.units import MILLI
from hexagent.core.workflow.model import CallOutcome


class Prices:
    """Priced GPU-microseconds: time on an instance, times its GPUs, times the price of one; that of an A100 is 1."""

    def __init__(self, cluster: ClusterSpec) -> None:
        prices = GPU_PRICES_MILLI | dict(cluster.gpu_prices_milli)
        self._milli = {i.instance_id: i.tp * prices.get(i.gpu_type, MILLI) for i in cluster.instances}
        self.cluster_milli = sum(self._milli.values())  # what a microsecond of all of them is worth, thousandths

    def predicted(self, attempt: Attempt, prefill_us: int, estimator: Estimator) -> int:
        """Of an attempt that is in the ledger: `prefill_us`, and its share of the steps to its predicted output."""
        decode = attempt.decode
        steps_us = (attempt.call.output_q50 - 1) * decode.decode_step_us(estimator, 0, 0)
        return self._priced(
            attempt.prefill.spec.instance_id,
            prefill_us,
            decode.spec.instance_id,
            steps_us // max(len(decode.decoding), 1),
        )

    def charged(self, outcome: CallOutcome) -> int:
        """What a call that ended has used."""
        return self._priced(outcome.prefill_instance, prefill_us(outcome), outcome.decode_instance, decode_us(outcome))

    def _priced(self, prefill: str, prefill_us: int, decode: str, decode_us: int) -> int:
        """0 for an instance that is not of the cluster."""
        return (prefill_us * self._milli.get(prefill, 0) + decode_us * self._milli.get(decode, 0)) // MILLI


def prefill_us(outcome: CallOutcome) -> int:
    """How long the prompt was under way in its engine; 0 if it never was."""
    times = outcome.times
    return max(times.prefill_end_us - times.prefill_start_us, 0) if times.prefill_start_us else 0


def decode_us(outcome: CallOutcome) -> int:
    """Its share of decode steps; of an engine that does not say with how many others it shared them, all of them."""
    times = outcome.times
    if not (times.decode_start_us and times.end_us):
        return 0
    return outcome.decode_us or max(times.end_us - times.decode_start_us, 0)
