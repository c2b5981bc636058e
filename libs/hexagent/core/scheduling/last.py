"""Whether an instance can be spared in its role."""

from hexagent.core.errors import FailedPrecondition
from hexagent.core.instance.needs import ANYTHING, Needs
from hexagent.core.instance.spec import Role
from hexagent.core.scheduling.ledger import Instance, Ledger


def check_spared(ledger: Ledger, instance: Instance) -> None:
    """`FailedPrecondition` (LAST_INSTANCE) for one without which nobody usable serves its model, an adapter of it, its
    precision, or its KV's, in one of its phases."""
    spec = instance.spec
    loras = [Needs(lora.name) for lora in spec.loras]
    for needs in (ANYTHING, *loras, Needs(min_precision=spec.precision)):
        pools = zip(ledger.pool(spec.model, needs=needs), (Role.DECODE, Role.PREFILL), strict=True)
        for pool, other in pools:
            alike = [i for i in pool if i is not instance and i.spec.kv_precision == spec.kv_precision]
            if spec.role is not other and not alike:
                what = (f"adapter {needs.lora} of " if needs.lora else "") + spec.model
                what += f" in {needs.min_precision} at least" if needs.min_precision else ""
                raise FailedPrecondition(
                    f"{spec.instance_id} is the last that serves {what} in its role",
                    reason="LAST_INSTANCE",
                    field="instance_id",
                )
