"""Build hook of the wheel: compiles the core and the simulator's driver with mypyc (HATCH_BUILD_HOOKS_ENABLE=1).

The extensions lie in the wheel beside the sources that they are made of, and Python prefers them.
"""

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution
from setuptools.command.build_ext import build_ext

# Below libs/hexagent. The witness derives from a class of the core, which what is interpreted cannot.
COMPILED: Final = ("core/**/*.py", "sim/*.py", "sim/workloads/model.py", "sim/experiment/witness.py")
OPTIMISATION: Final = "1"  # -O2 takes more than twice as long to compile


class CompiledCore(BuildHookInterface[Any]):
    """Named by [tool.hatch.build.targets.wheel.hooks.custom]."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        os.chdir(self.root)
        for built in extensions(Path("build/native")):
            build_data["force_include"][str(built)] = str(built.relative_to("build/native/lib"))
        build_data.update(pure_python=False, infer_tag=True)


def extensions(folder: Path) -> list[Path]:
    """Compile; what was built lies in `folder`/lib by its place in the wheel."""
    from mypyc.build import mypycify  # finds setuptools by its having been imported

    package = Path("libs/hexagent")
    sources = sorted(path for pattern in COMPILED for path in package.glob(pattern) if path.name != "__init__.py")
    modules = mypycify(
        [str(path) for path in sources],
        opt_level=OPTIMISATION,
        debug_level="0",
        multi_file=True,
        target_dir=str(folder),
        group_name="hexagent",
    )
    shutil.rmtree(folder / "lib", ignore_errors=True)
    command = Compile(Distribution({"name": "hexagent", "ext_modules": modules}))
    command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "objects")
    command.ensure_finalized()
    command.run()
    return sorted((folder / "lib").rglob("*.so"))


class Compile(build_ext):  # type: ignore[misc]
    """Keeps every processor busy; setuptools itself compiles the files of an extension one after the other."""

    def build_extensions(self) -> None:
        compile_files = self.compiler.compile

        def compile_at_once(sources: Sequence[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                done = pool.map(partial(compile_files, **options), ([source] for source in sources))
                return [name for names in done for name in names]

        self.compiler.compile = compile_at_once
        super().build_extensions()
