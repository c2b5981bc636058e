"""`python .../engine_host/__main__.py SOCKET`: run by path, so that nothing has to be installed in the engine's Python.

Engine workers that are started as processes import this file again, hence the guard.
"""

if __name__ == "__main__":
    import importlib.util
    import sys
    from pathlib import Path

    folder = Path(__file__).resolve().parent
    # The folder must not stay on the path: its modules would stand before others' of the same name.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    spec = importlib.util.spec_from_file_location(
        "hexagent_engine_host", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = package
    spec.loader.exec_module(package)

    from hexagent_engine_host.program import run  # type: ignore[import-not-found]

    sys.exit(run(sys.argv[1]))
