"""The estimator's parameters."""

from typing import Final

from hexagent.api.estimator.v1 import snapshot_pb2
from hexagent.core.estimate.snapshot import LengthQuantiles, LinkFit, Snapshot, SpeedFactor, ToolQuantiles, smaller
from hexagent.wire.codec import parse, to_bytes

SNAPSHOT_BYTES_MAX: Final = 256 * 1024


def snapshot_to_proto(snapshot: Snapshot) -> snapshot_pb2.Snapshot:
    return snapshot_pb2.Snapshot(
        revision=snapshot.revision,
        at_us=snapshot.at_us,
        speeds=[_speed_to_proto(speed) for speed in snapshot.speeds],
        lengths=[_length_to_proto(length) for length in snapshot.lengths],
        tools=[_tool_to_proto(tool) for tool in snapshot.tools],
        links=[_link_to_proto(link) for link in snapshot.links],
        link_kinds=[_link_to_proto(link) for link in snapshot.link_kinds],
    )


def snapshot_from_proto(message: snapshot_pb2.Snapshot) -> Snapshot:
    return Snapshot(
        revision=message.revision,
        at_us=message.at_us,
        speeds=tuple(_speed_from_proto(speed) for speed in message.speeds),
        lengths=tuple(_length_from_proto(length) for length in message.lengths),
        tools=tuple(
            ToolQuantiles(tool.name, tool.samples, tool.q50_us, tool.q90_us, tool.q99_us) for tool in message.tools
        ),
        links=tuple(_link_from_proto(link) for link in message.links),
        link_kinds=tuple(_link_from_proto(link) for link in message.link_kinds),
    )


def snapshot_to_bytes(snapshot: Snapshot) -> bytes:
    return to_bytes(snapshot_to_proto(snapshot))


def fitting(snapshot: Snapshot) -> tuple[Snapshot, bytes]:
    """The snapshot in at most SNAPSHOT_BYTES_MAX: if need be without what is missed least, see `smaller`."""
    while len(data := snapshot_to_bytes(snapshot)) > SNAPSHOT_BYTES_MAX:
        snapshot = smaller(snapshot)
    return snapshot, data


def snapshot_from_bytes(data: bytes) -> Snapshot:
    return snapshot_from_proto(parse(snapshot_pb2.Snapshot, data))


def _speed_to_proto(speed: SpeedFactor) -> snapshot_pb2.SpeedFactor:
    return snapshot_pb2.SpeedFactor(
        instance_id=speed.instance_id,
        prefill_ppm=speed.prefill_ppm,
        decode_ppm=speed.decode_ppm,
        observations=speed.observations,
    )


def _speed_from_proto(message: snapshot_pb2.SpeedFactor) -> SpeedFactor:
    return SpeedFactor(
        instance_id=message.instance_id,
        prefill_ppm=message.prefill_ppm,
        decode_ppm=message.decode_ppm,
        observations=message.observations,
    )


def _length_to_proto(length: LengthQuantiles) -> snapshot_pb2.LengthQuantiles:
    return snapshot_pb2.LengthQuantiles(
        workflow_class=length.workflow_class,
        role=length.role,
        view=length.view,
        bucket=length.bucket,
        samples=length.samples,
        q50=length.q50,
        q90=length.q90,
        q99=length.q99,
        mean=length.mean,
    )


def _length_from_proto(message: snapshot_pb2.LengthQuantiles) -> LengthQuantiles:
    return LengthQuantiles(
        workflow_class=message.workflow_class,
        role=message.role,
        view=message.view,
        bucket=message.bucket,
        samples=message.samples,
        q50=message.q50,
        q90=message.q90,
        q99=message.q99,
        mean=message.mean,
    )


def _tool_to_proto(tool: ToolQuantiles) -> snapshot_pb2.ToolQuantiles:
    return snapshot_pb2.ToolQuantiles(**tool._asdict())


def _link_to_proto(link: LinkFit) -> snapshot_pb2.LinkFit:
    return snapshot_pb2.LinkFit(
        source=link.source,
        target=link.target,
        setup_us=link.setup_us,
        moving_ppm=link.moving_ppm,
        besides_us=link.besides_us,
        observations=link.observations,
    )


def _link_from_proto(message: snapshot_pb2.LinkFit) -> LinkFit:
    return LinkFit(
        source=message.source,
        target=message.target,
        setup_us=message.setup_us,
        moving_ppm=message.moving_ppm,
        besides_us=message.besides_us,
        observations=message.observations,
    )
