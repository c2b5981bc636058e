"""Whether the order of policies hangs on what is not known of the paper's clusters: links and the serving stack.

    python tools/rank_crosscheck.py [--json FILE]

Every policy on `mixed-3`, Llama-3.1-70B with the push hand-off and no prefix cache, under links of 12.5, 25 and
50 GB/s and, at 25 GB/s, under step times of an older stack that schedulers are not told of: prefill x 1.4, decode x 2.
"""

import argparse
import json
from pathlib import Path
from typing import Final, NamedTuple

from hexagent.core.instance.spec import LinkSpec
from hexagent.core.units import PPM
from hexagent.sim.clusters import LINK, named_cluster
from hexagent.sim.conditions import CONDITIONS, Conditions
from hexagent.sim.metrics import WorkflowRow, summary
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World

POLICIES: Final = ("fcfs", "workflow-fcfs", "workflow-llf", "atlas", "hexagent")
# Rates are the workloads' own: several times what this cluster can prefill.
WORKLOADS: Final = {"bfcl": Options(workflows=120), "lats": Options(workflows=30)}
SEEDS: Final = (101, 102)


class Setting(NamedTuple):
    name: str
    link: LinkSpec = LINK
    conditions: Conditions = CONDITIONS


SETTINGS: Final = (
    Setting("12.5 GB/s", LINK._replace(bytes_per_s=12_500_000_000)),
    Setting("25 GB/s"),
    Setting("50 GB/s", LINK._replace(bytes_per_s=50_000_000_000)),
    Setting("25 GB/s, older stack", conditions=Conditions(PPM * 14 // 10, 2 * PPM)),
)


def rows() -> list[dict[str, object]]:
    """One row a workload, setting and policy, the workflows of all seeds pooled; rank 1 needs the least scale."""
    made: list[dict[str, object]] = []
    for workload in WORKLOADS:
        for setting in SETTINGS:
            summaries = {policy: summary(_run(workload, setting, policy)) for policy in POLICIES}
            ranked = sorted(POLICIES, key=lambda policy: (summaries[policy].req95, policy))
            for policy, s in summaries.items():
                made.append(
                    {
                        "workload": workload,
                        "setting": setting.name,
                        "policy": policy,
                        "rank": ranked.index(policy) + 1,
                        "req95": s.req95,
                        "req99": s.req99,
                        "mean_jct_s": s.mean_jct_s,
                    }
                )
                print(" | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in made[-1].values()), flush=True)
    return made


def _run(workload: str, setting: Setting, policy: str) -> list[WorkflowRow]:
    cluster = named_cluster("mixed-3", profile="push", link=setting.link)
    pooled: list[WorkflowRow] = []
    for seed in SEEDS:
        scripts = generate(workload, WORKLOADS[workload]._replace(seed=seed))
        pooled += World(cluster, scripts, policy, seed, conditions=setting.conditions).run().rows
    return pooled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    made = rows()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
