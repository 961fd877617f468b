"""API keys: where they come from, how they are compared, and what each may use.

Keys never enter the settings, which Ray's dashboard shows. They come from the environment variable
RAYEMBED_API_KEYS (separated by commas) or from a YAML file, and each process reads them by itself.
"""

import base64
import hashlib
import hmac
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rayembed.common.errors import ConfigError
from rayembed.serving.errors import ApiError, Problem

KEYS_VARIABLE = "RAYEMBED_API_KEYS"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class KeySettings(BaseModel):
    """One entry of the key file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="shown in logs instead of the key")
    key: str = Field("", description="the key itself")
    sha256: str = Field("", description="instead of the key, its SHA-256 in hexadecimal")
    requests_per_minute: float | None = Field(None, gt=0, description="empty: no limit")
    tokens_per_minute: float | None = Field(None, gt=0, description="empty: no limit")

    def digest(self) -> bytes:
        """SHA-256 of the key.

        Raises:
            ConfigError: neither or both of key and sha256 are given, or the digest is malformed.
        """
        if bool(self.key) == bool(self.sha256):
            raise ConfigError(f"API key {self.name!r}: give either key or sha256")
        if self.key:
            return hashlib.sha256(self.key.encode()).digest()
        try:
            digest = bytes.fromhex(self.sha256)
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise ConfigError(f"API key {self.name!r}: sha256 must be 64 hexadecimal digits")
        return digest


class TokenBucket:
    """A limit per minute that refills steadily; a minute's worth may be used at once."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic):
        self._per_minute = per_minute
        self._clock = clock
        self._left = per_minute
        self._updated = clock()

    def wait_s(self) -> float:
        """Seconds until something is left; 0 when something is."""
        now = self._clock()
        self._left = min(self._per_minute, self._left + (now - self._updated) * self._per_minute / 60)
        self._updated = now
        return 0.0 if self._left > 0 else -self._left * 60 / self._per_minute + 1e-3

    def use(self, amount: float) -> None:
        """Take `amount`, below zero if need be: what a request uses is known only afterwards."""
        self._left -= amount


class ApiClient:
    """The holder of one key."""

    def __init__(self, settings: KeySettings, share: float, clock: Callable[[], float]):
        self.name = settings.name
        self.digest = settings.digest()
        requests, tokens = settings.requests_per_minute, settings.tokens_per_minute
        self._requests = TokenBucket(requests * share, clock) if requests else None
        self._tokens = TokenBucket(tokens * share, clock) if tokens else None

    @property
    def owner(self) -> str:
        """What tells the files of this key from those of others; says nothing about the key."""
        return hashlib.sha256(b"owner" + self.digest).hexdigest()[:32]

    def admit(self) -> None:
        """Count a request.

        Raises:
            ApiError: 429, a limit of this key is used up.
        """
        self._check(self._requests, "requests")
        self.check_tokens()
        if self._requests:
            self._requests.use(1)

    def _check(self, bucket: TokenBucket | None, what: str) -> None:
        if bucket and (wait := bucket.wait_s()):
            seconds = max(math.ceil(wait), 1)
            message = f"this key has used its {what} per minute; send the request again in {seconds} s"
            raise ApiError(Problem(429, message, code=f"{what}_limit_exceeded", retry_after_s=seconds))

    def charge(self, tokens: int) -> None:
        """Count tokens: an estimate when work begins, and the difference to it when it ends."""
        if self._tokens:
            self._tokens.use(tokens)

    def check_tokens(self) -> None:
        """Raise ApiError 429 when the tokens of this minute are used or reserved."""
        self._check(self._tokens, "tokens")


class Keyring:
    """All keys of the endpoint."""

    def __init__(
        self, keys: list[KeySettings], share: float = 1, clock: Callable[[], float] = time.monotonic
    ):
        """`share` is this process's part of each limit where several front ends share the load."""
        self.clients = [ApiClient(settings, share, clock) for settings in keys]

    def admit(self, headers: Mapping[str, str]) -> ApiClient:
        """The client that the headers name.

        Compares every key in constant time: how long it takes tells nothing about the keys.

        Raises:
            ApiError: 401, the header is missing or no key fits; 429, its limits are used up.
        """
        presented = _presented_key(headers)
        digest = hashlib.sha256((presented or "").encode()).digest()
        matching = [client for client in self.clients if hmac.compare_digest(client.digest, digest)]
        if presented is None or not matching:
            message = "send a valid API key in the header `Authorization: Bearer KEY` or `api-key: KEY`"
            raise ApiError(Problem(401, message, code="invalid_api_key"))
        matching[0].admit()
        return matching[0]


def _presented_key(headers: Mapping[str, str]) -> str | None:
    """The key of a bearer token, of Azure's header, or of the password that a browser asks for."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            return None
    return headers.get("api-key") or headers.get("x-api-key")


def load_keys(file: str) -> list[KeySettings]:
    """Keys of the environment and of `file`, which may be empty for none.

    Raises:
        ConfigError: the file is missing or malformed; its keys are not repeated in the message.
    """
    from_environment = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    keys = [KeySettings(name=f"key-{index}", key=key) for index, key in enumerate(from_environment, 1)]
    if not file:
        return keys
    try:
        content = yaml.safe_load(Path(file).expanduser().read_text())
        return keys + TypeAdapter(list[KeySettings]).validate_python(content)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"API key file {file} cannot be read: {type(error).__name__}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
            for each in error.errors(include_input=False, include_url=False)
        )
        raise ConfigError(f"API key file {file} must be a list of keys: {problems}") from None


def load_keyring(authentication: str, file: str, host: str, share: float = 1) -> Keyring | None:
    """The keys that requests must show, or None where none are asked for.

    Raises:
        ConfigError: keys are needed, by the setting or because `host` is not a loopback address, and there
            are none.
    """
    if authentication == "off":
        return None
    keys = load_keys(file)
    if keys:
        return Keyring(keys, share)
    if authentication == "required" or host not in LOOPBACK_HOSTS:
        raise ConfigError(
            f"the endpoint would listen on {host} without any API key; set {KEYS_VARIABLE}, or api_keys_file "
            "to a file of keys, or authentication=off where something in front of it authenticates"
        )
    return None
