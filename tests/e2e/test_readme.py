"""The README's example runs as it stands, against a stack on another port."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.local_stack import Up

pytestmark = pytest.mark.e2e

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    with Up(tmp_path / "stack", "--time-scale", "5") as up:
        up.wait_said("HexAGenT is up")
        script = tmp_path / "example.py"
        script.write_text(example.replace("127.0.0.1:7400", up.address()), encoding="utf-8")
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
