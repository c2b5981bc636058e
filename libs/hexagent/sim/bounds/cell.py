"""A cell as the bound sees it: the least time of every call, and the work and greatest rate of each phase."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hexagent.core.estimate.estimator import Estimator
from hexagent.core.instance.spec import PROFILES, ClusterSpec, Role
from hexagent.core.instance.transfer import PIPELINED_TAIL_PPM
from hexagent.core.units import PPM, US_PER_S
from hexagent.sim.bounds.engine import Engine, FloatArray, Reach
from hexagent.sim.bounds.pieces import Piece, pieces_of, twins
from hexagent.sim.bounds.timing import timing_of
from hexagent.sim.clients import solo_of
from hexagent.sim.conditions import CONDITIONS, Conditions
from hexagent.sim.workloads.model import Workload

IntArray = npt.NDArray[np.int64]


class Load(NamedTuple):
    """Work of one phase under one weighing; arrays have an entry a piece of work."""

    workflow: IntArray
    release_us: FloatArray  # its earliest start
    anchor_us: FloatArray  # its latest end at scale 0
    work: FloatArray
    rate: float  # work a microsecond that all instances can do together


class Cell(NamedTuple):
    """Arrays have an entry a workflow."""

    solo_us: FloatArray
    path_us: FloatArray  # least completion time
    loads: tuple[Load, ...]


class _Engines(NamedTuple):
    prefill: tuple[Engine, ...]
    decode: tuple[Engine, ...]
    reuse: bool
    reach: Reach


class _Calls(NamedTuple):
    """Arrays with an entry a call, those of one workflow after those of the one before."""

    workflow: IntArray
    prefill_us: FloatArray  # least times
    move_us: FloatArray
    decode_us: FloatArray
    steps: FloatArray  # tokens to decode
    contexts: FloatArray  # tokens they read, summed over them


def cell_of(
    cluster: ClusterSpec, workload: Workload, conditions: Conditions = CONDITIONS, fixed_roles: bool = True
) -> Cell:
    """The cell; the workload has at least one workflow, the cluster serves one model."""
    engines = _engines(cluster, workload, conditions, fixed_roles)
    firsts = np.cumsum([0, *[len(workflow.items) for workflow in workload.workflows]]).tolist()
    pieces = pieces_of(workload, engines.reuse)
    calls = _calls(workload, pieces, firsts, engines)
    after_us = calls.move_us + calls.decode_us
    timings = [
        timing_of(workflow, calls.prefill_us[i:j].tolist(), after_us[i:j].tolist())
        for workflow, i, j in zip(workload.workflows, firsts, firsts[1:], strict=False)
    ]
    release_us = np.array([us for timing in timings for us in timing.release_us])
    anchor_us = np.array([us for timing in timings for us in timing.anchor_us])
    required = np.array([needed for timing in timings for needed in timing.required])
    estimator = Estimator(cluster)
    solos = [solo_of(workflow, estimator, cluster.models[0]).solo_us for workflow in workload.workflows]
    anchor_us[~required] = np.inf
    decodes = (calls.steps > 0) & required
    return Cell(
        np.maximum(np.array(solos, dtype=np.float64), 1.0),
        np.array([timing.path_us for timing in timings]),
        (
            *_prefill_loads(pieces, firsts, release_us, anchor_us - after_us, engines),
            *_decode_loads(calls, decodes, release_us + calls.prefill_us + calls.move_us, anchor_us, engines),
        ),
    )


def _engines(cluster: ClusterSpec, workload: Workload, conditions: Conditions, fixed_roles: bool) -> _Engines:
    reuse = any(spec.prefix_cache and PROFILES[spec.profile].block_reuse for spec in cluster.instances)
    items = [item for workflow in workload.workflows for item in workflow.items]
    engines = [Engine.of(cluster, spec, conditions) for spec in cluster.instances]
    longest = max([item.prompt_tokens + item.output_tokens for item in items])
    shortest = min([item.prompt_tokens for item in items])
    either = reuse or not fixed_roles
    return _Engines(
        tuple([e for e in engines if either or e.spec.role is not Role.DECODE]),
        tuple([e for e in engines if either or e.spec.role is not Role.PREFILL]),
        reuse,
        Reach(longest, shortest, reuse),
    )


def _calls(workload: Workload, pieces: list[Piece], firsts: list[int], engines: _Engines) -> _Calls:
    items = [item for workflow in workload.workflows for item in workflow.items]
    prompt = np.array([item.prompt_tokens for item in items], dtype=np.float64)
    steps = np.array([item.output_tokens - 1 for item in items], dtype=np.float64)
    tokens, pairs = _own_tokens(workload, pieces, firsts)
    reach = engines.reach
    prefill_us = np.min([e.least_prefill_us(tokens, pairs, reach) for e in engines.prefill], axis=0)
    step_us = np.min([e.least_step_us(prompt, reach) for e in engines.decode], axis=0)
    return _Calls(
        np.repeat(np.arange(len(workload.workflows)), np.diff(firsts)),
        prefill_us,
        _move_us(prompt, engines) * (steps > 0),
        step_us * steps,
        steps,
        steps * prompt + steps * (steps - 1) / 2,
    )


def _own_tokens(workload: Workload, pieces: list[Piece], firsts: list[int]) -> tuple[FloatArray, FloatArray]:
    """Tokens, at least one, and pairs computed between the start of each call and the end of its prefill."""
    tokens, pairs = np.zeros(firsts[-1]), np.zeros(firsts[-1])
    for piece in pieces:
        items = workload.workflows[piece.workflow].items
        for holder in piece.holders if piece.first else ():
            if twins(items[piece.holders[0]], items[holder]):
                tokens[firsts[piece.workflow] + holder] += piece.tokens
                pairs[firsts[piece.workflow] + holder] += piece.pairs
    return np.maximum(tokens, 1), pairs


def _move_us(prompt: FloatArray, engines: _Engines) -> FloatArray:
    """Least time between the end of prefill and decode: none where one instance may do both."""
    pairs = [(p, p.spec, d.spec) for p in engines.prefill for d in engines.decode]
    if any(p.instance_id == d.instance_id for _, p, d in pairs):
        return np.zeros_like(prompt)
    least = []
    for engine, p, d in pairs:
        tail = PIPELINED_TAIL_PPM / PPM if PROFILES[p.profile].pipelined_transfer else 1.0
        rate = min(p.link.bytes_per_s, d.link.bytes_per_s) / US_PER_S
        told_us = max(p.link.setup_us, d.link.setup_us) + prompt * (engine.table.kv_bytes_per_token * tail / rate)
        truth = engine.truth
        scale = truth.link_ppm(p.instance_id, d.instance_id) / PPM * truth.least_noise_ppm / PPM
        least.append(told_us * scale - 2)
    moved: FloatArray = np.maximum(np.min(least, axis=0), 0)
    return moved


def _prefill_loads(
    pieces: list[Piece], firsts: list[int], release_us: FloatArray, latest_us: FloatArray, engines: _Engines
) -> list[Load]:
    """Each piece from the earliest start of any holder to the earliest of the holders' latest ends."""
    holders = [[firsts[piece.workflow] + holder for holder in piece.holders] for piece in pieces]
    release = np.array([release_us[calls].min() for calls in holders])
    anchor = np.array([latest_us[calls].min() for calls in holders])
    workflow = np.array([piece.workflow for piece in pieces], dtype=np.int64)
    tokens = np.array([piece.tokens for piece in pieces], dtype=np.float64)
    pairs = np.array([piece.pairs for piece in pieces], dtype=np.float64)
    kept = np.isfinite(anchor)
    kappas = sorted({0.0, *[e.prefill_weight for e in engines.prefill]})
    return [
        Load(
            workflow[kept],
            release[kept],
            anchor[kept],
            (tokens + kappa * pairs)[kept],
            sum([e.prefill_rate(kappa, engines.reach) for e in engines.prefill]),
        )
        for kappa in kappas
    ]


def _decode_loads(
    calls: _Calls, kept: npt.NDArray[np.bool_], release_us: FloatArray, anchor_us: FloatArray, engines: _Engines
) -> list[Load]:
    kappas = sorted({0.0, *[e.decode_weight for e in engines.decode]})
    return [
        Load(
            calls.workflow[kept],
            release_us[kept],
            anchor_us[kept],
            (calls.steps + kappa * calls.contexts)[kept],
            sum([e.decode_rate(kappa, engines.reach) for e in engines.decode]),
        )
        for kappa in kappas
    ]
