"""What we use of TensorRT-LLM's interface, and whether a source tree or wheel of it still has that.

The manifest lists, by file, `methods` (all parameters in order), `fields` of classes (all, with defaults), `uses` of
classes (those we use; others may come and go), `arguments` of the engine (fields of a class of such; "" = whatever
default), `enums`, and by what says them the names that are only read (`reads`): those have to be words of the file,
which may be of C++ and is then only in a source tree.
"""

import ast
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = Path(__file__).with_name("manifest_1.2.1.json")
Manifest = dict[str, Any]

_WORDS = re.compile(r"\w+")


def load_manifest(path: Path = MANIFEST) -> Manifest:
    manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def drifts(root: Path, manifest: Manifest) -> list[str]:
    """Where a tree or wheel is not what the manifest says; it is parsed, never imported."""
    read = _reader(root)
    found: list[str] = []
    for path, wanted in manifest.items():
        if path == "version":
            continue
        try:
            text = read(path)
        except (KeyError, FileNotFoundError):
            if root.is_dir() or path.endswith(".py"):
                found.append(f"{path}: missing file")
            continue
        drifted = _read_drifts(set(_WORDS.findall(text)), wanted.get("reads", {}))
        if path.endswith(".py"):
            tree = ast.parse(text)
            classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
            drifted += _file_drifts(classes, wanted)
        found += [f"{path}: {drift}" for drift in drifted]
    return found


def breaks(drift: str) -> bool:
    """Whether something that we use is gone, rather than changed by default or new."""
    return " gained " not in drift and ", not " not in drift


def version_of(root: Path) -> str:
    """Of a tree or wheel, "" = it does not say."""
    try:
        text = _reader(root)("tensorrt_llm/version.py")
    except (KeyError, FileNotFoundError):
        return ""
    said = re.search(r'__version__ = "(.*)"', text)
    return said[1] if said else ""


def _read_drifts(words: set[str], reads: dict[str, list[str]]) -> list[str]:
    return [f"{owner} lost {name}" for owner, read in reads.items() for name in read if name not in words]


def _file_drifts(classes: dict[str, ast.ClassDef], wanted: Manifest) -> list[str]:
    found: list[str] = []
    for name, method in wanted.get("methods", {}).items():
        found += _method_drifts(classes, name, method)
    for kind in ("fields", "uses"):
        for name, fields in wanted.get(kind, {}).items():
            have = _fields(classes[name]) if name in classes else {}
            found += _field_drifts(name, have, fields)
            if kind == "fields" and (gained := sorted(set(have) - set(fields))):
                found += [f"{name} gained {field}" for field in gained]
    anywhere: dict[str, list[str]] = {}
    for node in (node for name, node in classes.items() if name.endswith("LlmArgs")):
        for name, default in _fields(node).items():
            anywhere.setdefault(name, []).append(default)
    for name, default in wanted.get("arguments", {}).items():
        if default not in anywhere.get(name, []) and (default or name not in anywhere):
            found.append(f"argument {name}: {anywhere.get(name)} has no {default or 'entry'}")
    for name, members in wanted.get("enums", {}).items():
        have_members = [
            t.id
            for n in _body(classes, name)
            if isinstance(n, ast.Assign)
            for t in n.targets
            if isinstance(t, ast.Name)
        ]
        found += [f"enum {name} lost {member}" for member in members if member not in have_members]
    return found


def _method_drifts(classes: dict[str, ast.ClassDef], name: str, wanted: Manifest) -> list[str]:
    owner, method = name.split(".")
    functions = (n for n in _body(classes, owner) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    function = next((f for f in functions if f.name == method), None)
    if function is None:
        return [f"{name} missing"]
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    have = [argument.arg for argument in (*positional, *arguments.kwonlyargs)]
    found = [f"{name} lost {p}" for p in wanted["params"] if p not in have]
    found += [f"{name} gained {p}" for p in have if p not in wanted["params"]]
    defaulted = positional[len(positional) - len(arguments.defaults) :]
    defaults = {a.arg: ast.unparse(d) for a, d in zip(defaulted, arguments.defaults, strict=True)}
    defaults |= {a.arg: ast.unparse(d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d}
    for parameter, default in wanted.get("defaults", {}).items():
        if defaults.get(parameter) != default:
            found.append(f"{name}({parameter}=) is {defaults.get(parameter)}, not {default}")
    if wanted.get("varkw") and arguments.kwarg is None:
        found.append(f"{name} lost its keyword arguments")
    return found


def _field_drifts(name: str, have: dict[str, str], wanted: dict[str, str]) -> list[str]:
    found = [f"{name}.{field} missing" for field in wanted if field not in have]
    for field, default in wanted.items():
        if field in have and have[field] != default:
            found.append(f"{name}.{field} is {have[field]}, not {default}")
    return found


def _fields(node: ast.ClassDef) -> dict[str, str]:
    """Annotated fields of a class with their defaults, also those given through `Field(...)`."""
    found: dict[str, str] = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = _default(statement.value)
    return found


def _default(node: ast.expr | None) -> str:
    if node is None:
        return "<required>"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Field", "field"):
        for keyword in node.keywords:
            if keyword.arg == "default":
                return ast.unparse(keyword.value)
            if keyword.arg == "default_factory":
                return f"<factory {ast.unparse(keyword.value)}>"
        return ast.unparse(node.args[0]) if node.args else "<required>"
    return ast.unparse(node)


def _body(classes: dict[str, ast.ClassDef], name: str) -> list[ast.stmt]:
    return classes[name].body if name in classes else []


def _reader(root: Path) -> Callable[[str], str]:
    if root.is_file():
        wheel = zipfile.ZipFile(root)
        return lambda path: wheel.read(path).decode()
    return lambda path: (root / path).read_text(encoding="utf-8")
