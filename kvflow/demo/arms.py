"""What is compared: settings of the cache, and in each of them SGLang as it comes and KVFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from kvflow.engine.options import RadixCache
from kvflow.errors import InvalidInputError

__all__ = ["ARMS", "DEFAULT_ARMS", "PAGE_SIZE", "SETTINGS", "Arm", "Setting", "choose_arms"]

PAGE_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """Sizes of the cache's tiers. Arms of one setting differ in what the cache does, not in size.

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
    """One run of the workflow: an engine with one kind of cache in one setting.

    Attributes:
        prefetch: whether KVFlow loads from the host tier ahead of the calls.
    """

    name: str
    title: str
    setting: Setting
    radix: RadixCache
    prefetch: bool = False

    @property
    def uses_kvflow(self) -> bool:
        return self.radix == "kvflow"


SETTINGS: Final = {
    setting.name: setting
    for setting in (
        Setting("device-only", "no host pool, and a device pool for part of the prompts", 6144),
        Setting(
            "small-host",
            "device and host pool together hold part of the prompts, the device two of them",
            2048,
            2.25,
        ),
        Setting("large-host", "the host pool holds all prompts", 6144, 3.0),
    )
}


def _arms(setting: Setting, suffix: str, in_words: str) -> tuple[Arm, ...]:
    stock = Arm(f"stock{suffix}", f"stock SGLang{in_words}", setting, "stock")
    kvflow = Arm(f"kvflow{suffix}", f"KVFlow{in_words}", setting, "kvflow")
    if setting.hicache_ratio is None:
        return stock, kvflow
    without = replace(
        kvflow, name=f"{kvflow.name}-noprefetch", title=f"{kvflow.title}, no prefetch"
    )
    return stock, replace(kvflow, prefetch=True), without


ARMS: Final = {
    arm.name: arm
    for arm in (
        *_arms(SETTINGS["device-only"], "", ""),
        *_arms(SETTINGS["small-host"], "+hicache", " with HiCache"),
        *_arms(SETTINGS["large-host"], "+large-hicache", " with large HiCache"),
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
