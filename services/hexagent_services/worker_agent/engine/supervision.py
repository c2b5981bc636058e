"""Engines are started, checked against what their profile promises, and started again when they are lost."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from hexagent.core.errors import HexagentError, InvalidArgument
from hexagent.core.instance.spec import PROFILES, InstanceSpec
from hexagent.runtime.logs import fields
from hexagent_services.worker_agent.engine.port import Engine

log = logging.getLogger(__name__)

STEADY_S: Final = 600.0  # wall time after which an engine that is lost counts as having run well
BACKOFF_S: Final = (0.5, 2.0, 10.0, 60.0)  # wall time before a lost engine starts again; the last for all further ones


async def bring_up(engine: Engine) -> None:
    """Start an engine. `InvalidArgument` (PROFILE_PROMISES_MORE) where the profile names what it cannot do."""
    found, profile = await engine.start(), PROFILES[engine.spec.profile]
    promised = {
        "block_reuse": profile.block_reuse and engine.spec.prefix_cache,
        "local_prefill": profile.local_prefill,
        "pipelined_transfer": profile.pipelined_transfer,
    }
    lacking = [name for name, wanted in promised.items() if wanted and not getattr(found, name)]
    if lacking:
        raise InvalidArgument(
            f"{engine.spec.instance_id}: profile {profile.name} promises {', '.join(lacking)}, the engine cannot",
            reason="PROFILE_PROMISES_MORE",
            field="engine_profile",
        )


async def keep_running(engine: Engine, changed: Callable[[InstanceSpec, str], None]) -> None:
    """Start the engine again whenever it is lost, until cancelled; what it held has been refused by then.

    `changed` is told the cause of each loss, and "" when the engine is back.
    """
    instance = fields(instance_id=engine.spec.instance_id)
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        started_s = loop.time()
        cause = await engine.lost()
        log.error("engine lost: %s", cause, extra=instance)
        changed(engine.spec, cause)
        if loop.time() - started_s >= STEADY_S:
            failures = 0
        while True:
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1
            try:
                await bring_up(engine)
            except HexagentError as error:
                log.error("engine does not start: %s", error.message, extra=instance)
            else:
                changed(engine.spec, "")
                break
