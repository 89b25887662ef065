"""What is compared: settings of the cache, and in each of them SGLang as it comes and KVFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvflow.engine.options import RadixCache
from kvflow.errors import InvalidInputError

__all__ = ["ARMS", "DEFAULT_ARMS", "PAGE_SIZE", "SETTINGS", "Arm", "Setting", "choose_arms"]

PAGE_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """Sizes of the cache's tiers. Arms of one setting differ in nothing but the cache's order.

    Attributes:
        device_tokens: capacity of the device tier.
        hicache_ratio: size of the host tier over that of the device tier; None: no host tier.
    """

    name: str
    description: str
    device_tokens: int
    hicache_ratio: float | None = None

    @property
    def host_tokens(self) -> int:
        """Capacity of the host tier as SGLang works it out: one page above the product
        (0.5.23, ``mem_cache/pool_host/base.py``)."""
        if self.hicache_ratio is None:
            return 0
        return (int(self.device_tokens * self.hicache_ratio) // PAGE_SIZE + 1) * PAGE_SIZE

    @property
    def capacity_tokens(self) -> int:
        """Both tiers together: more than this no policy could keep, even without copies."""
        return self.device_tokens + self.host_tokens


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of the workflow: an engine with one kind of cache in one setting."""

    name: str
    title: str
    setting: Setting
    radix: RadixCache

    @property
    def uses_kvflow(self) -> bool:
        return self.radix == "kvflow"


SETTINGS: Final = {
    setting.name: setting
    for setting in (
        Setting("device-only", "no host pool, and a device pool for part of the prompts", 6144),
        Setting("small-host", "device and host pool together hold part of the prompts", 1536, 3.0),
        Setting("large-host", "the host pool holds all prompts", 6144, 3.0),
    )
}


def _pair(setting: Setting, suffix: str, in_words: str) -> tuple[Arm, Arm]:
    return (
        Arm(f"stock{suffix}", f"stock SGLang{in_words}", setting, "stock"),
        Arm(f"kvflow{suffix}", f"KVFlow{in_words}", setting, "kvflow"),
    )


ARMS: Final = {
    arm.name: arm
    for arm in (
        *_pair(SETTINGS["device-only"], "", ""),
        *_pair(SETTINGS["small-host"], "+hicache", " with HiCache"),
        *_pair(SETTINGS["large-host"], "+large-hicache", " with a large HiCache"),
    )
}
DEFAULT_ARMS: Final = ("stock", "kvflow", "stock+hicache", "kvflow+hicache")


def choose_arms(names: Sequence[str]) -> tuple[Arm, ...]:
    """The arms named, in the order in which they run, whatever the order of the names.

    Raises:
        InvalidInputError: a name is unknown, or there is none.
    """
    wanted = set(names)
    unknown = sorted(wanted - set(ARMS))
    if unknown or not wanted:
        problem = f"{unknown[0]!r} is unknown" if unknown else "no arm is named"
        raise InvalidInputError(["--arms"], f"{problem}; choose among {', '.join(ARMS)}")
    return tuple(arm for arm in ARMS.values() if arm.name in wanted)
