"""Rules of protos/ beyond what buf lints: what every message must carry, and that enums mirror the core's."""

import importlib
import pathlib
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from grpc_tools import protoc

from hexagent.api.common.v1 import enums_pb2
from hexagent.core.instance.spec import HandOff, Role
from hexagent.core.scheduling.events import Phase
from hexagent.core.scheduling.record import DecisionKind
from hexagent.core.workflow.model import FinishReason, JoinKind, NodeKind, NodeStatus, WorkflowStatus
from hexagent.wire.segments import SegmentKind, SegmentRole

ROOT = pathlib.Path(__file__).resolve().parents[2] / "protos"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.proto"))
SERVICES = [name for name in FILES if name.endswith("_service.proto")]

# Reads and streams; everything else changes something.
READS = ("Get", "List", "Describe", "Watch", "Explain", "Estimate")
# Changes whose ticket, or whose session, makes them idempotent.
BY_TICKET = {"WarmUp", "HandOff", "PullKv", "AbortCall", "Session"}
ENVELOPES = {
    "WorkflowEventEnvelope",
    "CallOutcomeMessage",
    "WorkflowUpdate",
    "DecisionBatch",
    "InstanceTelemetry",
    "AgentAnnouncement",
}
# Field numbers of the descriptor messages that a location path is made of.
MESSAGE, ENUM, SERVICE = 4, 5, 6
NESTED, NESTED_ENUM, FIELD, ONEOF, VALUE, METHOD = 3, 4, 2, 8, 2, 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileDescriptorProto]:
    """Every file of protos/ as its descriptor, comments included."""
    out = tmp_path_factory.mktemp("protos") / "all.binpb"
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={out}"]
    assert protoc.main([*arguments, *FILES]) == 0
    return {file.name: file for file in FileDescriptorSet.FromString(out.read_bytes()).file}


def enum_paths(enum: EnumDescriptorProto, path: tuple[int, ...], name: str) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for i, value in enumerate(enum.value):
        yield (*path, VALUE, i), f"{name}.{value.name}"


def message_paths(message: DescriptorProto, path: tuple[int, ...], name: str) -> Iterator[tuple[tuple[int, ...], str]]:
    if message.options.map_entry:
        return
    yield path, name
    for i, field in enumerate(message.field):
        yield (*path, FIELD, i), f"{name}.{field.name}"
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for i, oneof in enumerate(message.oneof_decl):
        if i not in synthetic:
            yield (*path, ONEOF, i), f"{name}.{oneof.name}"
    for i, nested in enumerate(message.nested_type):
        yield from message_paths(nested, (*path, NESTED, i), f"{name}.{nested.name}")
    for i, enum in enumerate(message.enum_type):
        yield from enum_paths(enum, (*path, NESTED_ENUM, i), f"{name}.{enum.name}")


def element_paths(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Where each element of a file stands in it, and its name."""
    for i, message in enumerate(file.message_type):
        yield from message_paths(message, (MESSAGE, i), message.name)
    for i, enum in enumerate(file.enum_type):
        yield from enum_paths(enum, (ENUM, i), enum.name)
    for i, service in enumerate(file.service):
        yield (SERVICE, i), service.name
        for j, method in enumerate(service.method):
            yield (SERVICE, i, METHOD, j), f"{service.name}.{method.name}"


def messages_of(file: FileDescriptorProto) -> dict[str, DescriptorProto]:
    return {message.name: message for message in file.message_type}


def methods_of(files: dict[str, FileDescriptorProto]) -> Iterator[tuple[FileDescriptorProto, MethodDescriptorProto]]:
    for name in SERVICES:
        for method in files[name].service[0].method:
            yield files[name], method


@pytest.mark.parametrize("name", FILES)
def test_everything_is_commented(name: str, files: dict[str, FileDescriptorProto]) -> None:
    file = files[name]
    commented = {tuple(location.path) for location in file.source_code_info.location if location.leading_comments}
    assert [element for path, element in element_paths(file) if path not in commented] == []


@pytest.mark.parametrize("name", SERVICES)
def test_services_say_how_they_fail(name: str, files: dict[str, FileDescriptorProto]) -> None:
    comments = [
        location.leading_comments
        for location in files[name].source_code_info.location
        if tuple(location.path) == (SERVICE, 0)
    ]
    assert len(files[name].service) == 1
    assert "UNAVAILABLE" in comments[0]


def test_requests_and_responses_belong_to_one_rpc(files: dict[str, FileDescriptorProto]) -> None:
    for file, method in methods_of(files):
        prefix = f".{file.package}.{method.name}"
        assert (method.input_type, method.output_type) == (f"{prefix}Request", f"{prefix}Response")


def test_mutations_are_idempotent(files: dict[str, FileDescriptorProto]) -> None:
    """By a request id as the first field, or by the ticket they are about."""
    for file, method in methods_of(files):
        fields = {field.name: field.number for field in messages_of(file)[f"{method.name}Request"].field}
        if method.name not in BY_TICKET and not method.name.startswith(READS):
            assert fields.get("request_id") == 1, method.name
        else:
            assert "request_id" not in fields, method.name


def test_envelopes_carry_id_sequence_and_time(files: dict[str, FileDescriptorProto]) -> None:
    found = {}
    for file in files.values():
        for name, message in messages_of(file).items():
            fields = [field.name for field in message.field]
            if name in ENVELOPES:
                found[name] = fields[:3]
            else:
                assert "event_id" not in fields, f"{name} is an envelope that the table does not name"
    assert found == {name: ["event_id", "sequence", "occurred_at_us"] for name in ENVELOPES}


def test_times_outside_the_public_edge_are_integers_with_a_unit(files: dict[str, FileDescriptorProto]) -> None:
    for name, file in files.items():
        if "/workflow/v1/workflow" in name or name.endswith("common/v1/call.proto"):
            continue
        assert not any(dependency.startswith("google/") for dependency in file.dependency), name
        for message in file.message_type:
            for field in message.field:
                if field.name.endswith(("_at", "_time", "duration")):
                    pytest.fail(f"{name}: {message.name}.{field.name} has no unit")


@pytest.mark.parametrize("name", FILES)
def test_package_is_the_folder(name: str, files: dict[str, FileDescriptorProto]) -> None:
    assert files[name].package == pathlib.PurePosixPath(name).parent.as_posix().replace("/", ".")


@pytest.mark.parametrize("name", FILES)
def test_stubs_import(name: str) -> None:
    importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2_grpc")


@pytest.mark.parametrize(
    ("core", "message", "prefix"),
    [
        (NodeKind, enums_pb2.NodeKind, "NODE_KIND"),
        (JoinKind, enums_pb2.JoinKind, "JOIN_KIND"),
        (NodeStatus, enums_pb2.NodeStatus, "NODE_STATUS"),
        (WorkflowStatus, enums_pb2.WorkflowStatus, "WORKFLOW_STATUS"),
        (FinishReason, enums_pb2.FinishReason, "FINISH_REASON"),
        (Role, enums_pb2.Role, "ROLE"),
        (HandOff, enums_pb2.HandOff, "HAND_OFF"),
        (Phase, enums_pb2.Phase, "PHASE"),
        (DecisionKind, enums_pb2.DecisionKind, "DECISION_KIND"),
        (SegmentRole, enums_pb2.SegmentRole, "SEGMENT_ROLE"),
        (SegmentKind, enums_pb2.SegmentKind, "SEGMENT_KIND"),
    ],
)
def test_enums_mirror_the_core(core: type[IntEnum], message: Any, prefix: str) -> None:
    """Equal names and numbers; a core enum's own zero, where it has one, is UNSPECIFIED."""
    expected = {f"{prefix}_{member.name}": member.value for member in core if member.value}
    assert dict(message.items()) == {f"{prefix}_UNSPECIFIED": 0} | expected
