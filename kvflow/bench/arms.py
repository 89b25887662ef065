"""What is compared: ways of keeping the same prefixes in caches of the same size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from kvflow.engine.options import RadixCache
from kvflow.errors import InvalidInputError
from kvflow.workload import CacheSizes, Scenario

__all__ = ["ARMS", "STORAGE_FOLDER_VARIABLE", "ArmCache", "BenchArm", "arm_cache", "choose_arms"]

STORAGE_FOLDER_VARIABLE: Final = "SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR"

ArmName = Literal[
    "limit",
    "lru",
    "priority",
    "hicache-write-through",
    "hicache-write-back",
    "kvflow-eviction",
    "kvflow",
]
HostTier = Literal["never", "always", "if-any"]


@dataclass(frozen=True, slots=True)
class BenchArm:
    """One engine of a comparison.

    Attributes:
        host: whether it uses the scenario's host tier: never; always, so that it cannot run
            without one; or if there is one.
        priorities: whether requests carry a priority (see ``ClientPriorities``).
        prefetch: whether KVFlow copies ahead of need.
        holds_everything: its device pool has room for all that the workload ever computes.
        flags: SGLang flags of this arm alone.
    """

    name: ArmName
    title: str
    radix: RadixCache
    host: HostTier = "never"
    priorities: bool = False
    prefetch: bool = False
    holds_everything: bool = False
    flags: tuple[str, ...] = ()

    @property
    def uses_kvflow(self) -> bool:
        return self.radix == "kvflow"


ARMS: Final = {
    arm.name: arm
    for arm in (
        BenchArm("limit", "limit: everything fits on the device", "stock", holds_everything=True),
        BenchArm("lru", "stock SGLang (LRU)", "stock"),
        BenchArm(
            "priority",
            "stock SGLang, priorities set by the client",
            "stock",
            priorities=True,
            flags=("--radix-eviction-policy", "priority"),
        ),
        BenchArm(
            "hicache-write-through",
            "stock HiCache, write_through",
            "stock",
            "always",
            flags=("--hicache-write-policy", "write_through"),
        ),
        BenchArm(
            "hicache-write-back",
            "stock HiCache, write_back",
            "stock",
            "always",
            flags=("--hicache-write-policy", "write_back"),
        ),
        BenchArm("kvflow-eviction", "KVFlow, eviction only", "kvflow", "if-any"),
        BenchArm("kvflow", "KVFlow", "kvflow", "if-any", prefetch=True),
    )
}


@dataclass(frozen=True, slots=True)
class ArmCache:
    """Sizes of an arm's tiers, in tokens; ``host_tokens`` is 0 without one."""

    device_tokens: int
    host_tokens: int
    storage: bool
    page_tokens: int

    @property
    def hicache_ratio(self) -> float | None:
        """What SGLang has to be told for ``host_tokens``; None without a host tier.

        SGLang takes the whole pages in the product and one more (0.5.23,
        ``mem_cache/pool_host/base.py``). Half a page is added, as the flag holds six digits.
        """
        if not self.host_tokens:
            return None
        return (self.host_tokens - self.page_tokens / 2) / self.device_tokens

    @property
    def flags(self) -> tuple[str, ...]:
        """SGLang flags for the storage tier."""
        if not self.storage:
            return ()
        return (
            *("--hicache-storage-backend", "file"),
            *("--hicache-storage-prefetch-policy", "wait_complete"),
        )


def arm_cache(arm: BenchArm, cache: CacheSizes, needed_tokens: int) -> ArmCache:
    """The tiers of an arm on this scenario's cache.

    Args:
        needed_tokens: what a cache would have to hold to evict nothing, in whole pages.
    """
    page = cache.page_tokens
    if arm.holds_everything:
        return ArmCache(max(needed_tokens, cache.device_tokens), 0, False, page)
    host = 0 if arm.host == "never" else -(-cache.host_tokens // page) * page
    return ArmCache(cache.device_tokens, host, bool(host) and cache.storage, page)


def choose_arms(names: Sequence[str] | None, scenario: Scenario) -> tuple[BenchArm, ...]:
    """The arms named, in the order of ``ARMS``; without names, those that differ on this scenario.

    Raises:
        InvalidInputError: a name is unknown or there is none, or an arm needs a host tier and the
            scenario has none.
    """
    has_host = scenario.cache.host_tokens > 0
    if names is None:
        # Without a host tier nothing can be prefetched: the two KVFlow arms would be one.
        left_out = set() if has_host else {"kvflow-eviction"}
        return tuple(
            arm
            for arm in ARMS.values()
            if (has_host or arm.host != "always") and arm.name not in left_out
        )
    wanted = set(names)
    unknown = sorted(wanted - set(ARMS))
    if unknown or not wanted:
        problem = f"{unknown[0]!r} is unknown" if unknown else "no arm is named"
        raise InvalidInputError(["--arms"], f"{problem}; choose among {', '.join(ARMS)}")
    arms = tuple(arm for arm in ARMS.values() if arm.name in wanted)
    without_tier = [arm.name for arm in arms if arm.host == "always" and not has_host]
    if without_tier:
        raise InvalidInputError(
            ["--arms"],
            f"{without_tier[0]!r} needs a host tier; set cache.host_tokens in the scenario, "
            "or leave the arm out",
        )
    return arms
