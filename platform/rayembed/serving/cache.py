"""Vectors of texts that were computed before, keyed by everything that decides a vector."""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from cachetools import LRUCache

from rayembed.common.errors import ConfigError
from rayembed.serving.messages import Inputs, Truncation

logger = logging.getLogger(__name__)

REDIS_URL_VARIABLE = "RAYEMBED_REDIS_URL"
CacheKind = Literal["off", "memory", "redis"]
_HEADER = struct.Struct("<I?")
_REDIS_LIFETIME_S = 7 * 24 * 3600
_REDIS_TIMEOUT_S = 0.5  # a forward pass takes no longer


@dataclass(frozen=True)
class CachedVector:
    """A full-width vector, shape (D,), and what the response says about its text."""

    vector: np.ndarray
    tokens: int
    truncated: bool

    def to_bytes(self) -> bytes:
        """Little-endian: tokens, truncated, fp32 components."""
        return _HEADER.pack(self.tokens, self.truncated) + self.vector.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> "CachedVector":
        """Inverse of `to_bytes`."""
        tokens, truncated = _HEADER.unpack_from(content)
        return cls(np.frombuffer(content, "<f4", offset=_HEADER.size), tokens, truncated)


def input_keys(inputs: Inputs, model: Sequence[Any], truncate: Truncation) -> list[str]:
    """For each input a hash of what decides its vector.

    Args:
        inputs: texts and their instruction.
        model: weights, their number format and the maximum length.
        truncate: rule for long inputs.
    """
    rules = repr((model, truncate, replace(inputs, texts=(), token_ids=())))
    return [
        hashlib.sha256(json.dumps([rules, text]).encode()).hexdigest()
        for text in inputs.texts or inputs.token_ids
    ]


class VectorCache(Protocol):
    """Where vectors are kept between requests."""

    async def find(self, keys: Sequence[str]) -> list[CachedVector | None]:
        """The entry of each key, None where there is none."""

    async def store(self, entries: Mapping[str, CachedVector]) -> None:
        """Keep entries; they may be dropped at any time."""


class NoCache:
    """Keeps nothing."""

    async def find(self, keys: Sequence[str]) -> list[CachedVector | None]:
        """Nothing for each key."""
        return [None] * len(keys)

    async def store(self, entries: Mapping[str, CachedVector]) -> None:
        """Drop everything."""


class MemoryCache:
    """Keeps the most recently used vectors in this process."""

    def __init__(self, max_bytes: int):
        self._entries: LRUCache[str, bytes] = LRUCache(max_bytes, getsizeof=len)

    async def find(self, keys: Sequence[str]) -> list[CachedVector | None]:
        """The entry of each key, None where there is none."""
        found = [self._entries.get(key) for key in keys]
        return [None if content is None else CachedVector.from_bytes(content) for content in found]

    async def store(self, entries: Mapping[str, CachedVector]) -> None:
        """Keep entries, pushing out those unused for longest; one above the whole size is not kept."""
        for key, entry in entries.items():
            content = entry.to_bytes()
            if len(content) <= self._entries.maxsize:
                self._entries[key] = content


class RedisCache:
    """Shares vectors between replicas through Redis; while it cannot be reached, nothing is cached."""

    def __init__(self, client: Any):
        """`client` is a `redis.asyncio.Redis` that returns bytes."""
        self._client = client
        self._reachable = True

    async def find(self, keys: Sequence[str]) -> list[CachedVector | None]:
        """The entry of each key, None where there is none."""
        if not keys:
            return []
        found = await self._guarded(self._client.mget([f"rayembed:{key}" for key in keys]))
        if found is None:
            return [None] * len(keys)
        return [None if content is None else CachedVector.from_bytes(content) for content in found]

    async def store(self, entries: Mapping[str, CachedVector]) -> None:
        """Keep entries for a week."""
        pipeline = self._client.pipeline(transaction=False)
        for key, entry in entries.items():
            pipeline.set(f"rayembed:{key}", entry.to_bytes(), ex=_REDIS_LIFETIME_S)
        await self._guarded(pipeline.execute())

    async def _guarded(self, command: Any) -> Any:
        from redis.exceptions import RedisError

        try:
            answer = await command
        except RedisError as error:
            if self._reachable:
                logger.warning("Redis failed (%s): texts are computed anew", type(error).__name__)
            self._reachable = False
            return None
        self._reachable = True
        return answer


def make_cache(kind: CacheKind, max_bytes: int) -> VectorCache:
    """The cache that a replica was configured with.

    Raises:
        ConfigError: Redis is asked for and its package or its address is missing.
    """
    if kind == "off":
        return NoCache()
    if kind == "memory":
        return MemoryCache(max_bytes)
    try:
        from redis.asyncio import Redis
    except ImportError as error:
        raise ConfigError("cache=redis needs the package redis: pip install 'rayembed[redis]'") from error
    address = os.environ.get(REDIS_URL_VARIABLE)
    if not address:
        raise ConfigError(f"cache=redis needs the environment variable {REDIS_URL_VARIABLE} on every replica")
    client = Redis.from_url(address, socket_timeout=_REDIS_TIMEOUT_S, socket_connect_timeout=_REDIS_TIMEOUT_S)
    return RedisCache(client)
