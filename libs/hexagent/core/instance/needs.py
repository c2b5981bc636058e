"""What a call needs of the instances that run it, beyond their model; most calls need nothing."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from hexagent.core.estimate.roofline import PRECISION_BYTES
from hexagent.core.instance.spec import InstanceSpec, Role


class Needs(NamedTuple):
    lora: str = ""  # adapter that is served on top of the model, "" = none
    min_precision: str = ""  # of weights, a key of PRECISION_BYTES; "" = any


ANYTHING: Final = Needs()


def serves(spec: InstanceSpec, needs: Needs) -> bool:
    """Whether the instance may run a call of its model with these needs, in the phases that it runs."""
    if needs.lora and all(needs.lora != lora.name for lora in spec.loras):
        return False
    return not needs.min_precision or PRECISION_BYTES[spec.precision] >= PRECISION_BYTES[needs.min_precision]


def hands_over(prefill: InstanceSpec, decode: InstanceSpec) -> bool:
    """Whether KV can move between two different instances."""
    stays = prefill.role is not Role.PREFILL or decode.role is not Role.DECODE
    return not stays and prefill.kv_precision == decode.kv_precision


def served(specs: Iterable[InstanceSpec], needs: Needs) -> bool:
    """Whether some of these instances of a model can run a call with these needs from prompt to end."""
    able = [spec for spec in specs if serves(spec, needs)]
    return any(p.role is Role.BOTH or any(hands_over(p, d) for d in able) for p in able)
