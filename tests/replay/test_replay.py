"""A journal gives its decisions again, bit for bit; other policies and weights say where they differ."""

from pathlib import Path

import pytest

from hexagent import __version__
from hexagent.core.errors import InvalidArgument
from hexagent.core.instance.spec import FlipWay, Role, RoleFlip
from hexagent.core.policy.profile import DEFAULT, Profile, parse_profile
from hexagent.core.scheduling.core import SchedulerCore
from hexagent.core.scheduling.effects import Effect, Shadowed
from hexagent.core.scheduling.events import InstanceUp, SchedulerEvent
from hexagent.core.scheduling.record import DecisionRecord
from hexagent.core.scheduling.replay import Replayed, replay
from hexagent.core.units import US_PER_S
from hexagent.runtime.journal import JournalWriter, read_journal
from hexagent.sim.clusters import named_cluster
from hexagent.sim.workloads.generators import generate
from hexagent.sim.workloads.options import Options
from hexagent.sim.world import World
from hexagent.wire.journal import JournalEntry, JournalHeader

DECISIONS = 5_000


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of at least `DECISIONS` decisions, through the file format."""
    path = tmp_path_factory.mktemp("journal") / "scheduler.journal"
    cluster = named_cluster("hetero-1")._replace(seed=5)
    writer = JournalWriter(path, JournalHeader("hexagent", cluster, __version__), 1 << 30)
    workload = generate("bfcl", Options(workflows=480, rate_per_s=40, seed=5))
    World(cluster, workload, "hexagent", seed=5, journal=writer.append).run()
    writer.flush()
    return path


def replayed(entries: list[JournalEntry], *others: tuple[str, Profile]) -> Replayed:
    header = entries[0].event
    assert isinstance(header, JournalHeader)
    history = [(e.now_us, e.event) for e in entries[1:] if not isinstance(e.event, JournalHeader)]
    return replay(header.cluster, header.policy, header.profile, history, others)


def test_replay_is_bit_identical(journal: Path) -> None:
    result = replayed(list(read_journal(journal)))
    assert result.decisions >= DECISIONS
    assert result.differences == ()
    assert result.shadowed == ()


def test_calls_that_prefill_instances_keep_are_replayed_too(tmp_path: Path) -> None:
    path = tmp_path / "kept.journal"
    cluster = named_cluster("mixed-3", prefix_cache=True)._replace(seed=5)
    writer = JournalWriter(path, JournalHeader("hexagent-plus", cluster, __version__), 1 << 30)
    workload = generate("mixed", Options(workflows=20, rate_per_s=5, seed=5))
    World(cluster, workload, "hexagent-plus", seed=5, journal=writer.append).run()
    writer.flush()
    entries = list(read_journal(path))
    records = [e.event for e in entries if isinstance(e.event, DecisionRecord)]
    kept = [r for r in records if r.chosen.prefill_instance == r.chosen.decode_instance]
    assert 0 < len(kept) < len(records)
    assert replayed(entries).differences == ()


def test_changes_of_roles_are_replayed_too(tmp_path: Path) -> None:
    path = tmp_path / "flips.journal"
    flip = RoleFlip(FlipWay.RESTART, US_PER_S)
    cluster = named_cluster("mixed-3", prefix_cache=True)._replace(seed=5)
    cluster = cluster._replace(instances=tuple(spec._replace(flip=flip) for spec in cluster.instances))
    profile = DEFAULT._replace(flip_us_max=US_PER_S)
    writer = JournalWriter(path, JournalHeader("fcfs", cluster, __version__, profile), 1 << 30)
    workload = generate("sharegpt", Options(workflows=200, rate_per_s=10, seed=5))
    world = World(cluster, workload, "fcfs", seed=5, journal=writer.append, profile=profile)
    world.schedule(US_PER_S, world.flip, "decode-a100-0", Role.PREFILL)
    world.run()
    writer.flush()
    entries = list(read_journal(path))
    changed = {e.event.spec.instance_id for e in entries if isinstance(e.event, InstanceUp) and e.now_us}
    assert "decode-a100-0" in changed
    assert len(changed) > 1  # some by the rule
    assert replayed(entries).differences == ()


def test_other_policies_and_weights_show_where_they_differ(journal: Path) -> None:
    entries = list(read_journal(journal))[:20_000]
    unbatched = DEFAULT._replace(batch_us_max=0)
    result = replayed(entries, ("fcfs", DEFAULT), ("hexagent", unbatched))
    assert result.differences == ()
    assert {s.policy for s in result.shadowed} == {"fcfs", "hexagent"}
    assert all(s.made != s.would_make for s in result.shadowed)


def test_shadows_plan_at_a_share_of_the_points_and_change_nothing() -> None:
    cluster = named_cluster("mixed-3")._replace(seed=5)
    inputs: list[tuple[SchedulerEvent, int]] = []

    def heard(event: SchedulerEvent | DecisionRecord, now_us: int) -> None:
        if not isinstance(event, DecisionRecord):
            inputs.append((event, now_us))

    World(cluster, generate("bfcl", Options(workflows=25, rate_per_s=10, seed=5)), "hexagent", 5, journal=heard).run()
    shadows = (("fcfs", DEFAULT), ("fcfs:least-loaded", DEFAULT))
    cores = {
        "alone": SchedulerCore(cluster, "hexagent"),
        "all": SchedulerCore(cluster, "hexagent", shadows=shadows),
        "fifth": SchedulerCore(cluster, "hexagent", shadows=shadows, shadow_every=5),
    }
    acts: dict[str, list[Effect]] = {}
    said: dict[str, list[Shadowed]] = {}
    for name, core in cores.items():
        effects = [effect for event, now_us in inputs for effect in core.handle(event, now_us)]
        acts[name] = [effect for effect in effects if not isinstance(effect, Shadowed)]
        said[name] = [effect for effect in effects if isinstance(effect, Shadowed)]
    assert acts["alone"] == acts["all"] == acts["fifth"]
    assert said["alone"] == []
    # `fcfs` keeps nothing from one plan to the next: it says the same, only less often.
    of_fcfs = {name: [one for one in found if one.policy == "fcfs"] for name, found in said.items()}
    assert set(of_fcfs["fifth"]) <= set(of_fcfs["all"])
    assert len(said["all"]) / 8 < len(said["fifth"]) < len(said["all"]) / 3
    agreement = cores["all"].shadows.agreement
    assert agreement["fcfs"].other > 0
    assert agreement["fcfs:least-loaded"].elsewhere > 0
    assert sum(a.same + a.elsewhere + a.other for a in agreement.values()) == len(said["all"])
    assert sum(a.same for a in agreement.values()) == sum(not one.differs for one in said["all"])


def test_a_changed_decision_is_found(journal: Path) -> None:
    entries = list(read_journal(journal))
    end = next(i for i, e in enumerate(entries) if i > 5_000 and not isinstance(e.event, DecisionRecord))
    entries = entries[:end]  # whole inputs, each with its decisions
    at = next(i for i, e in enumerate(entries) if isinstance(e.event, DecisionRecord))
    record = entries[at].event
    assert isinstance(record, DecisionRecord)
    entries[at] = entries[at]._replace(event=record._replace(position=record.position + 1))
    (difference,) = replayed(entries).differences
    assert difference.replayed == record


def test_a_cut_off_journal_ends_at_its_last_whole_entry(journal: Path, tmp_path: Path) -> None:
    data = journal.read_bytes()[:100_001]
    cut = tmp_path / "cut.journal"
    cut.write_bytes(data)
    entries = list(read_journal(cut))
    assert entries
    assert [e.sequence for e in entries] == list(range(1, len(entries) + 1))


def test_a_full_journal_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = named_cluster("mixed-3")
    path = tmp_path / "small.journal"
    writer = JournalWriter(path, JournalHeader("fcfs", cluster, __version__), 10_000)
    workload = generate("bfcl", Options(workflows=3, rate_per_s=40, seed=5))
    World(cluster, workload, "fcfs", seed=1, journal=writer.append).run()
    writer.flush()
    assert path.stat().st_size < 12_000
    assert "is full" in caplog.text


@pytest.mark.parametrize(
    ("text", "field"),
    [("speed = 1", "speed"), ("walked_max = 0", "walked_max"), ("batch_us_max = 1.5", "batch_us_max"), ("=", "")],
)
def test_wrong_profiles_are_refused_by_key(text: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_profile(text, "p.toml")
    assert caught.value.field == field
    assert "p.toml" in caught.value.message


def test_a_missing_journal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot read"):
        list(read_journal(tmp_path / "none"))
