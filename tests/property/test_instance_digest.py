"""The same script has the same effects, byte for byte, in every process."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.property.test_instance_world import Job, Script, World

ROOT = Path(__file__).parents[2]


def digest(profile: str) -> str:
    """SHA-256 over the effects of a fixed script of 60 calls with shared prompts, aborts and little KV."""
    jobs = tuple(
        Job(
            at_us=n * 1_700,
            groups=(n % 3, 3 + n % 2)[: n % 4],
            tail=20 + n * 37 % 200,
            output=1 + n * 29 % 90,
            spare=n % 40,
            reserve=20 + n % 30,
            local=n % 5 == 0,
            rank=n % 3,
            abort_us=9_000 + 500 * n if n % 7 == 0 else 0,
            abort_at=("", "p0", "d0 x0")[n % 3],
        )
        for n in range(60)
    )
    world = World(Script(jobs, profile, kv_blocks=60, seed=5, both=True))
    world.run()
    return sha256(repr(world.effects).encode()).hexdigest()


@pytest.mark.parametrize("profile", ["trtllm-1.2.1", "trtllm-equal-progress", "push", "ideal"])
def test_effects_do_not_depend_on_the_hash_seed(profile: str) -> None:
    code = f"from tests.property.test_instance_digest import digest; print(digest({profile!r}))"
    found = []
    for seed in ("0", "1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT / 'libs'}{os.pathsep}{ROOT}"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        found.append(done.stdout.strip())
    assert found == [digest(profile)] * 3
