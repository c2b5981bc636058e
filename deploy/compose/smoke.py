"""One workflow through a stack: `python smoke.py [HOST:PORT]`. Says where each call ran; fails if a call does."""

import asyncio
import sys

import hexagent.client


async def main(address: str) -> None:
    async with hexagent.client.connect(address) as client, client.workflow("smoke", slo_scale=3) as wf:
        plan = await wf.call("Plan the work.", role="plan", max_tokens=32)
        parts = await asyncio.gather(*(wf.call([plan, f"Do part {i}."], role="part", max_tokens=32) for i in range(3)))
        final = await wf.call(["Put it together.", *parts], role="final", max_tokens=32)
    for result in (plan, *parts, final):
        print(f"{result.node_id}: {result.usage.output_tokens} tokens on {' -> '.join(result.instances)}")
    print(f"workflow {wf.workflow_id}: {wf.outcome}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400"))
