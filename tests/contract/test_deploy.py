"""deploy/ without any container engine: the files are well-formed and agree with each other and with the code."""

import importlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from hexagent.runtime.app import LATE_ACTION_S
from hexagent.runtime.cluster_file import load_cluster
from hexagent.runtime.publish_cluster import PublishSettings
from hexagent.runtime.settings import PREFIX, Settings, variable
from hexagent.runtime.streams import MESSAGE_BYTES_MAX, StreamLimits

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
DOCKERFILES = sorted(DEPLOY.glob("docker/*.Dockerfile"))
PUBLISH_MODULE = "hexagent.runtime.publish_cluster"


def yaml_of(path: pathlib.Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


STACK: dict[str, Any] = yaml_of(COMPOSE / "compose.yaml")["services"]
OVERLAY: dict[str, Any] = yaml_of(COMPOSE / "observability.yaml")["services"]


class Process(NamedTuple):
    """A service of compose.yaml that runs a module of ours."""

    name: str
    module: str
    environ: dict[str, str]  # with the overlay's
    settings: type[Settings]


def processes() -> Iterator[Process]:
    for name, service in STACK.items():
        if "entrypoint" in service:
            continue
        module = service["command"][0]
        overlay = OVERLAY.get(name, {}).get("environment", {})
        environ = service["environment"] | overlay
        yield Process(name, module, environ, PublishSettings if module == PUBLISH_MODULE else settings_of(module))


def settings_of(module: str) -> type[Settings]:
    defined = vars(importlib.import_module(f"{module}.settings")).values()
    found = [value for value in defined if isinstance(value, type) and issubclass(value, Settings)]
    (settings,) = (value for value in found if value.__module__ == f"{module}.settings")
    return settings


PROCESSES = list(processes())
SERVERS = [process for process in PROCESSES if process.module != PUBLISH_MODULE]
AGENTS = [process for process in PROCESSES if process.module == "hexagent_services.worker_agent"]


def names(process: Process) -> str:
    return process.name


def published(services: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(host address, host port, container port) of every published port."""
    ports = [port for service in services.values() for port in service.get("ports", ())]
    return [tuple(port.split(":")) for port in ports]


def tool(name: str) -> str:
    """A program of the development environment."""
    path = pathlib.Path(sys.executable).parent / name
    assert path.is_file(), f"{name} is not in the environment: run `make setup`"
    return str(path)


# -- well-formed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compose.yaml", "observability.yaml"])
def test_compose_files_follow_the_compose_specification(name: str) -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_have_no_findings(path: pathlib.Path) -> None:
    # Without configuration from the home folder; findings of every severity count.
    environ = {"PATH": os.environ.get("PATH", ""), "HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent"}
    command = [tool("hadolint"), "--no-color", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_there_is_a_recipe_for_services_and_one_for_engine_agents() -> None:
    assert [path.name for path in DOCKERFILES] == ["agent-trtllm.Dockerfile", "services.Dockerfile"]


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse_and_explain_themselves(path: pathlib.Path) -> None:
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)
    done = subprocess.run(["bash", str(path), "--help"], capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_start_from_an_argument_and_end_as_nobody_in_particular(path: pathlib.Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert re.search(r"^ARG BASE=\S+[:/]\S+$", text, re.MULTILINE)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "10001:10001"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_images_copy_exists_and_is_in_their_context(path: pathlib.Path) -> None:
    ignore = path.with_name(path.name + ".dockerignore").read_text(encoding="utf-8")
    allowed = set(re.findall(r"^!(\S+)$", ignore, re.MULTILINE))
    copied: set[str] = set()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(encoding="utf-8"), re.MULTILINE):
        copied.update(sources.split())
    assert copied == allowed
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_packages_are_fetched_by_hash_and_installed_from_what_was_fetched(path: pathlib.Path) -> None:
    text = path.read_text(encoding="utf-8")
    fetches = re.findall(r"\bpip\S*(?: --python \S+)? (?:download|install|wheel) (.*)", text)
    assert fetches
    assert [line for line in fetches if "--require-hashes" not in line and "--no-index" not in line] == []


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=names)
def test_modules_exist(process: Process) -> None:
    specification = importlib.util.find_spec(process.module)
    assert specification is not None
    if specification.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{process.module}.__main__") is not None


@pytest.mark.parametrize("process", PROCESSES, ids=names)
def test_variables_are_settings_of_the_service_and_valid(process: Process) -> None:
    known = {variable(field) for field in process.settings.model_fields}
    assert sorted(name for name in process.environ if name.startswith(PREFIX) and name not in known) == []
    assert sorted(name for name in process.environ if not name.startswith(PREFIX)) == []
    process.settings.read(process.environ)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_variables_of_images_are_settings_of_every_service(path: pathlib.Path) -> None:
    used = set(re.findall(rf"\b{PREFIX}[A-Z_]+", path.read_text(encoding="utf-8")))
    assert used - {variable(field) for field in Settings.model_fields} == set()


@pytest.mark.parametrize("process", SERVERS, ids=names)
def test_servers_are_reached_checked_and_published_where_they_listen(process: Process) -> None:
    service = STACK[process.name]
    settings = process.settings.read(process.environ)
    assert settings.listen_host == "0.0.0.0"
    assert settings.advertise_host == process.name
    assert settings.nats_url == "nats://nats:4222"
    port = str(settings.listen_port)
    published = [port, *([process.environ["HEXAGENT_HTTP_PORT"]] if process.name == "gateway" else [])]
    assert service["ports"] == [f"127.0.0.1:{number}:{number}" for number in published]
    assert service["healthcheck"]["test"] == [
        "CMD", "python", "-m", "hexagent.runtime.check_health", f"127.0.0.1:{port}",
    ]  # fmt: skip


def test_published_ports_are_distinct_and_open_to_this_machine_only() -> None:
    ports = published(STACK) + published(OVERLAY)
    assert {host for host, _, _ in ports} == {"127.0.0.1"}
    numbers = [port for _, port, _ in ports]
    assert sorted(set(numbers)) == sorted(numbers)


@pytest.mark.parametrize("name", STACK)
def test_containers_hold_no_privilege_and_come_back(name: str) -> None:
    service = STACK[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == ("on-failure:5" if name == "publish-cluster" else "unless-stopped")
    grace_s = Settings.model_fields["stop_grace_s"].default + LATE_ACTION_S
    assert float(service["stop_grace_period"].removesuffix("s")) > grace_s


def test_the_cluster_has_the_agents_that_run() -> None:
    config = load_cluster(COMPOSE / "cluster.toml")
    assert [agent.agent_id for agent in config.agents] == sorted(agent.environ["HEXAGENT_AGENT_ID"] for agent in AGENTS)
    assert all(agent.name == agent.environ["HEXAGENT_AGENT_ID"] for agent in AGENTS)
    assert {instance.gpu_type for instance in config.spec.instances} == {"a100", "h100", "h200"}
    assert config.policy == STACK["scheduler"]["environment"]["HEXAGENT_POLICY"]


@pytest.mark.parametrize(("file", "services"), [("compose.yaml", STACK), ("observability.yaml", OVERLAY)])
def test_mounted_files_exist_and_volumes_are_declared(file: str, services: dict[str, Any]) -> None:
    declared = yaml_of(COMPOSE / file).get("volumes", {})
    missing = []
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            known = (COMPOSE / source).is_file() if source.startswith(".") else source in declared
            if not known:
                missing.append((name, source))
    assert missing == []


def test_the_podman_script_checks_every_server() -> None:
    text = (COMPOSE / "up-with-podman.sh").read_text(encoding="utf-8")
    listed = re.search(r"^grpc_services=\((.*)\)$", text, re.MULTILINE)
    assert listed is not None
    expected = [f"{process.name}:{process.environ['HEXAGENT_LISTEN_PORT']}" for process in SERVERS]
    assert listed[1].split() == expected


# -- configurations ----------------------------------------------------------------------------------------------------


def test_nats_has_the_room_that_the_streams_take() -> None:
    text = (DEPLOY / "nats" / "nats-server.conf").read_text(encoding="utf-8")
    found = {key: int(value) for key, value in re.findall(r"^\s*(\w+): (\d+)$", text, re.MULTILINE)}
    limits = StreamLimits()
    assert found == {
        "port": 4222,
        "max_payload": MESSAGE_BYTES_MAX,
        "max_pending": 8 * MESSAGE_BYTES_MAX,
        "max_file_store": limits.file_bytes,
        "max_memory_store": limits.memory_bytes,
    }
    assert 'store_dir: "/var/lib/nats"' in text
    assert "nats-data:/var/lib/nats" in STACK["nats"]["volumes"]


def test_every_service_exports_to_the_collector_of_the_overlay() -> None:
    collector = yaml_of(DEPLOY / "otel" / "collector.yaml")
    listens = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    for server in SERVERS:
        assert server.environ["HEXAGENT_OTLP_ENDPOINT"] == f"otel-collector:{listens.rpartition(':')[2]}"


def test_the_collector_uses_what_it_declares_and_prometheus_reads_it() -> None:
    collector = yaml_of(DEPLOY / "otel" / "collector.yaml")
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in collector["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used == set(collector[kind])
    exported = collector["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]
    (scrape,) = yaml_of(DEPLOY / "otel" / "prometheus.yaml")["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"otel-collector:{exported}"]}]
    assert collector["exporters"]["otlp/jaeger"]["endpoint"].partition(":")[0] in OVERLAY
