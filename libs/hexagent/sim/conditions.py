"""How a simulated run departs from what schedulers are told: true step times, and errors of their estimates."""

from typing import Final, NamedTuple

from hexagent.core.estimate.snapshot import EMPTY, LengthQuantiles, LinkFit, Snapshot, SpeedFactor, ToolQuantiles
from hexagent.core.instance.noise import Truth, hash64
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.units import PPM
from hexagent.core.workflow.model import Hints

NO_HINTS: Final = -1


class Conditions(NamedTuple):
    """Factors in ppm; hidden factors and engine noise are the cluster's own and stay as they are."""

    prefill_factor_ppm: int = PPM  # true prefill time over the table's: hardware of another family
    decode_factor_ppm: int = PPM
    estimate_noise_ppm: int = 0  # standard deviation of the log of an estimate's error
    true_lengths: bool = False  # schedulers are told what each call they can see will generate
    mean_lengths: bool = False  # of all that was learned of output lengths schedulers are told the means of classes
    hint_noise_ppm: int = NO_HINTS  # clients say their workflow's horizon with such a log error; NO_HINTS: they do not


CONDITIONS: Final = Conditions()


class EstimateNoise:
    """Errors that learning never removes: a constant log-normal factor, of median one, on each learned parameter.

    Each instance has one for prefill and one for decode, each link one, each (class, role) one for its output lengths,
    each tool one for its run time; all are hashed from the cluster's seed. Horizons are nominal and have none.
    """

    def __init__(self, cluster: ClusterSpec, noise_ppm: int) -> None:
        self._truth = Truth(cluster.seed, noise_ppm=noise_ppm)
        self._instances = sorted(spec.instance_id for spec in cluster.instances)

    def bent(self, snapshot: Snapshot = EMPTY) -> Snapshot:
        """The snapshot with errors; it names every instance, since one never observed is misjudged as well."""
        speeds = {speed.instance_id: speed for speed in snapshot.speeds}
        return snapshot._replace(
            speeds=tuple([self._speed(speeds.get(name, SpeedFactor(name, PPM, PPM, 0))) for name in self._instances]),
            lengths=tuple([self._length(length) for length in snapshot.lengths]),
            tools=tuple([self._tool(tool) for tool in snapshot.tools]),
            links=tuple([self._link(link) for link in snapshot.links]),
            link_kinds=tuple([self._link(link) for link in snapshot.link_kinds]),
        )

    def _speed(self, speed: SpeedFactor) -> SpeedFactor:
        prefill, decode = (self._factor(phase, speed.instance_id) for phase in ("prefill", "decode"))
        return speed._replace(
            prefill_ppm=speed.prefill_ppm * prefill // PPM, decode_ppm=speed.decode_ppm * decode // PPM
        )

    def _length(self, length: LengthQuantiles) -> LengthQuantiles:
        factor = self._factor("length", length.workflow_class, length.role)
        q50, q90, q99, mean = (
            tokens and max(1, tokens * factor // PPM) for tokens in (length.q50, length.q90, length.q99, length.mean)
        )
        return length._replace(q50=q50, q90=q90, q99=q99, mean=mean)

    def _tool(self, tool: ToolQuantiles) -> ToolQuantiles:
        factor = self._factor("tool", tool.name)
        q50_us, q90_us, q99_us = (us * factor // PPM for us in (tool.q50_us, tool.q90_us, tool.q99_us))
        return tool._replace(q50_us=q50_us, q90_us=q90_us, q99_us=q99_us)

    def _link(self, link: LinkFit) -> LinkFit:
        factor = self._factor("link", link.source, link.target)
        return link._replace(setup_us=link.setup_us * factor // PPM, moving_ppm=max(1, link.moving_ppm * factor // PPM))

    def _factor(self, *key: str) -> int:
        return self._truth.noise(hash64("estimate", self._truth.seed, *key), 0)


def means_of_classes(snapshot: Snapshot) -> Snapshot:
    """The snapshot with nothing of output lengths but the mean of each class, and of all."""
    lengths = [row for row in snapshot.lengths if not row.role]
    told = [row._replace(q50=row.mean, q90=row.mean, q99=row.mean) for row in lengths if not row.view]
    return snapshot._replace(lengths=tuple(told))


def hints(seed: int, workflow_id: str, solo_us: int, noise_ppm: int) -> Hints:
    """What a client that is wrong by a log-normal factor of median one, its workflow's own, says of its future."""
    factor_ppm = Truth(seed, noise_ppm=noise_ppm).noise(hash64("hint", seed, workflow_id), 0)
    return Hints(total_solo_us=max(1, solo_us * factor_ppm // PPM))
