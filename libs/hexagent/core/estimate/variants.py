"""Tables of engines as they are configured: KV in another precision than the weights, speculative decoding.

Decode reads KV, so its attention, what a step takes beyond the shortest context of the grid, grows with the bytes of KV
a token; capacity and transfers go by them too. An engine that speculates drafts g tokens for each sequence and
verifies g + 1 at a time, of which E are kept on average:

    time of one token = (draft(g) + verify(b, g)) / E
    draft(g)          = g * draft_cost * decode(b, shortest context)
    verify(b, g)      = decode(b * (g + 1), shortest context) + attention(b, context): KV is read once for g + 1 tokens
    E                 = 1 + a + ... + a^g, a = chance that a drafted token is accepted, each as likely

What differs from it in truth, acceptance above all, is learned as the decode speed of the instance.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from hexagent.core.estimate.roofline import PRECISION_BYTES
from hexagent.core.estimate.smoothing import extendable, monotone
from hexagent.core.estimate.tables import Grid, StepTable, load_table, model_figures
from hexagent.core.instance.spec import InstanceSpec, Speculation
from hexagent.core.units import PPM


def table_of(spec: InstanceSpec, own: Iterable[StepTable]) -> StepTable:
    """The table of an instance's engine among a cluster's own, else what `load_table` has; raises what that does."""
    engine = spec.gpu_type, spec.model, spec.tp, spec.precision
    table = next((table for table in own if table.engine == engine), None) or load_table(*engine)
    if spec.kv_precision == spec.precision and spec.speculation is None:
        return table
    return variant(table, spec.kv_precision, spec.speculation)


@lru_cache(maxsize=256)
def variant(table: StepTable, kv_precision: str, speculation: Speculation | None) -> StepTable:
    """The table with KV of `kv_precision`, a key of PRECISION_BYTES, and decode as it speculates."""
    kv_ratio = PRECISION_BYTES[kv_precision] / PRECISION_BYTES[table.precision]
    grid = table.decode
    times = np.array(grid.us, dtype=np.float64)
    shortest = times[:, :1]
    attention = (times - shortest) * kv_ratio
    if speculation is None:
        decode = shortest + attention
    else:
        drafted, cost = speculation.draft_tokens, speculation.draft_cost_ppm / PPM
        verified = [[table.decode_us(batch * (drafted + 1), grid.columns[0])] for batch in grid.rows]
        step = drafted * cost * shortest + np.array(verified, dtype=np.float64) + attention
        decode = step * PPM / speculation.kept_ppm
    smooth = extendable(np.rint(monotone(decode)))
    us = tuple(tuple(int(time_us) for time_us in row) for row in smooth)
    return replace(
        table,
        kv_tokens=int(table.kv_tokens / kv_ratio),
        kv_bytes_per_token=model_figures(table.model).kv_bytes_per_token(kv_precision),
        decode=Grid(grid.rows, grid.columns, us),
    )
