"""Rules about the repository itself: what its files may say, what the lock covers, what the wheel ships."""

import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("libs/hexagent", "services/hexagent_services")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()

# Joined here, because this file is under its own rule.
REGISTRY_HOSTS = tuple(
    ".".join(labels)
    for labels in (
        ("pypi", "org"),
        ("pypi", "nvidia", "com"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("crates", "io"),
    )
)
# A home folder, or the folder this copy happens to lie in: both are true of one machine only.
HOME_FOLDER = re.compile(r"(?<![\w.$}/])/(?:home|Users)/\w+")


@pytest.fixture(scope="module")
def repository_files() -> list[pathlib.Path]:
    """Every file that is tracked or would be with `git add .`."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git working copy")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


@pytest.fixture(scope="module")
def repository_texts(repository_files: list[pathlib.Path]) -> dict[str, str]:
    """The content of every text file by its path from the root."""
    texts = {}
    for path in repository_files:
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            texts[path.relative_to(ROOT).as_posix()] = content.decode(errors="replace")
    return texts


def locked_versions() -> dict[str, str]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", LOCK, re.MULTILINE)
    versions: dict[str, str] = {canonicalize_name(name): version for name, version in pins}
    assert len(versions) == len(pins), "a package is locked twice: the two Pythons would run different code"
    return versions


def requirements_of(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines]


def test_no_file_names_a_registry(repository_texts: dict[str, str]) -> None:
    hosts = re.compile("|".join(rf"(?<![\w-]){re.escape(host)}\b" for host in REGISTRY_HOSTS))
    assert [name for name, text in repository_texts.items() if hosts.search(text)] == []


def test_no_file_names_a_folder_of_one_machine(repository_texts: dict[str, str]) -> None:
    # A checkout at the top of the file system, as in a container, has a path too short to look for.
    here = re.compile(re.escape(str(ROOT)) + r"\b") if len(ROOT.parts) > 2 else None
    found = [
        name for name, text in repository_texts.items() if HOME_FOLDER.search(text) or (here and here.search(text))
    ]
    assert found == []


def test_lock_is_hash_pinned_and_holds_no_address() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*-", re.sub(r"^ +--hash=.*$", "", LOCK, flags=re.MULTILINE), re.MULTILINE)
    entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE))
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_lock_satisfies_the_project() -> None:
    versions = locked_versions()
    wanted = requirements_of(PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"])
    unmet = []
    for requirement in wanted:
        version = versions.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            unmet.append(str(requirement))
    assert unmet == [], "run `make lock`"


def test_what_cannot_be_locked_stays_out_of_the_lock() -> None:
    outside = requirements_of(
        PROJECT["dependency-groups"]["tables"] + PROJECT["project"]["optional-dependencies"]["trtllm"]
    )
    assert {canonicalize_name(requirement.name) for requirement in outside}.isdisjoint(locked_versions())


def test_every_package_folder_is_a_regular_package(repository_files: list[pathlib.Path]) -> None:
    folders = {
        folder
        for path in repository_files
        if path.suffix == ".py"
        for package in PACKAGES
        if path.is_relative_to(ROOT / package)
        for folder in path.parents
        if folder.is_relative_to(ROOT / package)
    }
    missing = [folder.relative_to(ROOT).as_posix() for folder in folders if not (folder / "__init__.py").is_file()]
    assert sorted(missing) == []
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").is_file()] == []


def test_wheel_ships_every_file_of_both_packages(repository_files: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    expected = {
        path.relative_to((ROOT / package).parent).as_posix()
        for path in repository_files
        for package in PACKAGES
        if path.is_relative_to(ROOT / package)
    }
    assert sorted(expected - shipped) == []
