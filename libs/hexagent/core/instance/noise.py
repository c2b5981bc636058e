"""Hidden truth of an instance: how its real steps differ from the tables, the same on every platform and run."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from hexagent.core.ids import Ticket
from hexagent.core.instance.spec import ClusterSpec
from hexagent.core.units import PPM

_MASK: Final = (1 << 64) - 1

# Upper half of 256 equally likely standard normal values, in ppm. Literals, since a computed quantile could
# differ between maths libraries in the last bit and with it every later event.
# fmt: off
_HALF_NORMAL_PPM = (
    4_896, 14_688, 24_481, 34_277, 44_076, 53_879, 63_688, 73_503, 83_324, 93_154, 102_993, 112_841, 122_701,
    132_573, 142_457, 152_356, 162_269, 172_199, 182_145, 192_110, 202_093, 212_097, 222_122, 232_170, 242_241,
    252_336, 262_457, 272_606, 282_782, 292_988, 303_225, 313_493, 323_794, 334_130, 344_502, 354_911, 365_359,
    375_846, 386_375, 396_947, 407_564, 418_227, 428_937, 439_697, 450_509, 461_373, 472_291, 483_267, 494_301,
    505_395, 516_552, 527_774, 539_062, 550_420, 561_849, 573_352, 584_932, 596_590, 608_330, 620_154, 632_066,
    644_068, 656_164, 668_356, 680_649, 693_045, 705_549, 718_164, 730_894, 743_744, 756_718, 769_821, 783_057,
    796_432, 809_950, 823_619, 837_443, 851_429, 865_583, 879_913, 894_426, 909_130, 924_034, 939_145, 954_474,
    970_031, 985_826, 1_001_870, 1_018_177, 1_034_759, 1_051_631, 1_068_808, 1_086_306, 1_104_143, 1_122_338,
    1_140_913, 1_159_890, 1_179_294, 1_199_152, 1_219_495, 1_240_356, 1_261_771, 1_283_781, 1_306_430,
    1_329_771, 1_353_859, 1_378_760, 1_404_546, 1_431_302, 1_459_123, 1_488_122, 1_518_429, 1_550_199,
    1_583_615, 1_618_900, 1_656_324, 1_696_223, 1_739_020, 1_785_262, 1_835_672, 1_891_229, 1_953_324,
    2_024_014, 2_106_554, 2_206_575, 2_335_233, 2_520_502, 2_885_635,
)
# fmt: on


def mix64(value: int) -> int:
    """A 64-bit hash of a 64-bit value (splitmix64's finaliser): every input bit reaches every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def hash64(*parts: object) -> int:
    """A 64-bit hash of the text of `parts`, equal in every process."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def exp_ppm(exponent_ppm: int) -> int:
    """e to the power of `exponent_ppm` ppm, in ppm, by integer arithmetic only."""
    scale = 10**24
    exponent = exponent_ppm * (scale // PPM)
    term = total = scale
    for n in range(1, 64):
        term = term * exponent // (n * scale)
        total += term
    return (total + scale // PPM // 2) // (scale // PPM)


@lru_cache(maxsize=64)
def _multipliers(noise_ppm: int) -> tuple[int, ...]:
    """256 equally likely log-normal multipliers in ppm: median one, `noise_ppm` the deviation of the logarithm."""
    above = [exp_ppm(noise_ppm * z // PPM) for z in _HALF_NORMAL_PPM]
    below = [PPM * PPM // m for m in above]
    return tuple(reversed(below)) + tuple(above)


TRANSFER: Final = -1  # position of the noise of a call's transfer


@dataclass(frozen=True, slots=True)
class Truth:
    """What an emulated instance does to a table's step time; no scheduler or estimator sees it.

    A step takes table time x hidden x (prefill or decode factor) x noise. The two factors stand for hardware
    of another family than the tables (an older serving stack, a throttled GPU). A transfer takes the time its two ends
    are described with x a factor of the pair x noise.
    """

    seed: int
    hidden_factor_ppm: int = PPM  # constant of the instance
    noise_ppm: int = 0  # standard deviation of the log of a step's noise
    prefill_factor_ppm: int = PPM
    decode_factor_ppm: int = PPM
    link_factor_ppm: tuple[int, int] = (PPM, PPM)  # range of the constant factors of pairs

    @classmethod
    def drawn(
        cls,
        cluster: ClusterSpec,
        instance_id: str,
        prefill_factor_ppm: int = PPM,
        decode_factor_ppm: int = PPM,
    ) -> "Truth":
        """The truth of one instance of a cluster: hidden factors hashed from seed and ids, uniform in the range."""
        low, high = cluster.hidden_factor_ppm
        hidden = low + hash64("hidden", cluster.seed, instance_id) % (high - low + 1)
        factors = (prefill_factor_ppm, decode_factor_ppm, cluster.hidden_factor_ppm)
        return cls(cluster.seed, hidden, cluster.noise_ppm, *factors)

    @property
    def prefill_ppm(self) -> int:
        """Constant part of what a prefill step takes over its table time."""
        return self.hidden_factor_ppm * self.prefill_factor_ppm // PPM

    @property
    def decode_ppm(self) -> int:
        return self.hidden_factor_ppm * self.decode_factor_ppm // PPM

    def link_ppm(self, source: str, target: str) -> int:
        """Constant part of what a transfer between two instances takes over what their links are described with."""
        low, high = self.link_factor_ppm
        return low + hash64("link", self.seed, source, target) % (high - low + 1)

    @property
    def least_noise_ppm(self) -> int:
        """The smallest multiplier a step can get."""
        return _multipliers(self.noise_ppm)[0] if self.noise_ppm else PPM

    def call_key(self, instance_id: str, ticket: Ticket) -> int:
        """What the noise of a call's steps hangs on.

        The epoch stays out: a scheduler restart must not change how long the work takes.
        """
        call = ticket.call
        return hash64(self.seed, instance_id, call.workflow_id, call.node_id, ticket.attempt)

    def noise(self, call_key: int, position: int) -> int:
        """Multiplier in ppm of the step a call leads at token `position` of its context, or of its `TRANSFER`."""
        if not self.noise_ppm:
            return PPM
        return _multipliers(self.noise_ppm)[mix64(call_key ^ position) >> 56]
