"""Makes the committed gRPC stubs from protos/, or checks that they are what protos/ gives.

Usage: python tools/stubs.py generate | check
"""

import filecmp
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
STUBS = ROOT / "libs" / "hexagent" / "api"
INIT = '"""Generated from protos/ by `make protos`; not edited by hand."""\n'


def generate(scratch: pathlib.Path) -> pathlib.Path:
    """Generates into `scratch` and returns the folder that stands for libs/hexagent/api."""
    tools = pathlib.Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([tools / "buf", "generate", "--output", scratch], cwd=ROOT, env=environment, check=True)
    fresh = scratch / "gen" / "hexagent" / "api"
    for folder in [fresh, *(path for path in fresh.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(INIT)
    return fresh


def stub_files(folder: pathlib.Path) -> set[str]:
    """Paths of the stubs below `folder`, without what an interpreter leaves there."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def drift(fresh: pathlib.Path, committed: pathlib.Path) -> list[str]:
    """What differs between the fresh stubs and the committed ones, one line a file."""
    ours, theirs = stub_files(fresh), stub_files(committed)
    lines = [f"missing: {name}" for name in ours - theirs]
    lines += [f"no longer generated: {name}" for name in theirs - ours]
    lines += [
        f"differs: {name}" for name in ours & theirs if not filecmp.cmp(fresh / name, committed / name, shallow=False)
    ]
    return sorted(lines)


def main(arguments: list[str]) -> int:
    if arguments not in (["generate"], ["check"]):
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate(pathlib.Path(scratch))
        changes = drift(fresh, STUBS)
        if arguments == ["check"]:
            for line in changes:
                print(line)
            print("Stubs differ from protos/: run `make protos`." if changes else "Stubs match protos/.")
            return 1 if changes else 0
        if changes:
            shutil.rmtree(STUBS, ignore_errors=True)
            shutil.copytree(fresh, STUBS)
        print(f"{len(changes)} stub files changed in {STUBS.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
