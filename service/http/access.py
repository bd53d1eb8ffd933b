"""Access: keys with roles and rates, allowed hosts, the admin port, and read-only services."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import time
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from serve.errors import SchemaError, say
from service.http.errors import LOGGER
from service.http.schemas import PROFILING, ROLES, Role

if TYPE_CHECKING:
    from starlette.types import Scope

KEYS = "keys"  # the fault of a file that cannot be read
_STALE = "the file of keys cannot be read: those of before are still admitted"
_REQUEST_SECONDS = 0.01  # of computing that a key's rate counts as one request
_RECHECK_SECONDS = 1.0  # between two looks at the file of keys
_FORM = "NAME ask|write|admin SHA256 [REQUESTS_PER_SECOND [BURST]]"
_LINE = re.compile(
    r"(\S+)\s+(ask|write|admin)\s+([0-9a-f]{64})(?:\s+(\d+(?:\.\d+)?)(?:\s+([1-9]\d*))?)?"
)
_NETWORK_BITS = 64  # of IPv6: whoever has one such address has all of them
_EMPTY_KEY = hashlib.sha256(b"").hexdigest()  # of a variable that was not set
_CHANGES = ("/v1/events", "/v1/shown", "/v1/users/forget", PROFILING)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_BEARER = {"www-authenticate": "Bearer"}
_LOG = logging.getLogger(LOGGER)


@dataclass(eq=False)
class Key:
    """A key, by its SHA-256 digest; `due` is when its next request is due at its rate."""

    name: str
    role: Role
    digest: bytes
    per_second: float = math.inf
    burst: float = 1
    due: float = 0.0

    def take(self, now: float) -> float:
        """Count a request by the generic cell rate algorithm.

        Args:
            now: seconds of a monotonic clock.

        Returns:
            0, or the seconds until the request may come again.
        """
        due = max(self.due, now)
        wait = due - now - (self.burst - 1) / self.per_second
        if wait > 0:
            return wait
        self.due = due + 1 / self.per_second
        return 0.0

    def charge(self, seconds: float) -> None:
        """Count what took long to compute as several requests."""
        self.due += max(0.0, seconds / _REQUEST_SECONDS - 1) / self.per_second


class KeyFile:
    """The keys of a file, read again when it changes; a damaged file changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: bytes | None = None
        self._look_at = 0.0
        self._keys: tuple[Key, ...] = ()
        self.fault: str | None = None  # while the file cannot be read
        self._read()

    def find(self, digest: bytes, now: float) -> Key | None:
        """Return the key of a digest, after all keys were compared."""
        if now >= self._look_at:
            self._look_at = now + _RECHECK_SECONDS
            self._read_again()

        matches = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return matches[-1] if matches else None

    def _read_again(self) -> None:
        """Read the file if it changed; say once what is wrong with it."""
        try:
            self._read()
        except (OSError, ValueError) as error:
            if self.fault is None:
                _LOG.error("the keys stay as they were: %s", say(error))
            self.fault = _STALE
        else:
            self.fault = None

    def _read(self) -> None:
        content = self._path.read_bytes()
        if content != self._content:
            self._keys = read_keys(self._path)
            self._content = content


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read the keys of a file.

    Args:
        path: a text of one key a line; `#` begins a comment.

    Raises:
        SchemaError: a line has another form, or the file holds no keys.
    """
    if path.stat().st_mode & 0o004:
        _LOG.warning("everybody on this machine may read %s: chmod 600", path)
    keys = []
    lines = path.read_text(encoding="utf-8-sig").splitlines()

    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            keys.append(_read_key(f"{path}, line {number}", text))

    if not keys:
        raise SchemaError(f"{path} holds no keys; expected lines of {_FORM}")

    if len({key.digest for key in keys}) < len(keys):
        raise SchemaError(
            f"{path} has one key twice; expected another one in each line"
        )

    return tuple(keys)


def _read_key(where: str, line: str) -> Key:
    """Read a line; an error does not repeat it, for it may hold a key in place of its hash."""
    match = _LINE.fullmatch(line)
    if match is None or match[3] == _EMPTY_KEY or float(match[4] or 1) == 0:
        raise SchemaError(
            f"{where} is no line of a key; expected {_FORM}, "
            "and the hash of a key that is not empty"
        )

    key = Key(match[1], Role[match[2].upper()], bytes.fromhex(match[3]))
    if match[4]:
        key.per_second = float(match[4])
        key.burst = float(match[5] or max(key.per_second, 1))

    return key


@dataclass(frozen=True)
class Access:
    """The requests that a server admits.

    Attributes:
        keys: the keys; without them everybody is admitted.
        token: admits a reload from the same machine.
        hosts: names that are answered beside loopback and the address that was called.
        admin_port: the only port of the admin routes, if there is one.
        read_only: whether events, items and erasures are refused.
    """

    keys: KeyFile | None = None
    token: str | None = None
    hosts: frozenset[str] = frozenset()
    admin_port: int | None = None
    read_only: bool = False

    def admit(self, scope: Scope) -> None:
        """Raise HTTPException for a request that is not admitted, by its head alone."""
        headers = dict(scope["headers"])
        path = scope["path"]
        role = ROLES.get(path, Role.ADMIN)
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise HTTPException(  # a proxy may read the other length
                400,
                "the body has a content-length and a transfer-encoding",
                {"connection": "close"},
            )

        names = [name for name, _ in scope["headers"]]
        if names.count(b"authorization") > 1:
            raise HTTPException(400, "there are several authorization headers")

        # an image of another site may ask what costs time, though the site cannot read it
        origin = headers.get(b"sec-fetch-site", b"none")
        if origin not in (b"none", b"same-origin") and role is not Role.OPEN:
            raise HTTPException(403, "pages of other sites may not ask")

        self._check_host(headers, scope["server"][0])
        if role is Role.ADMIN and self.admin_port not in (None, scope["server"][1]):
            raise HTTPException(404, "Not Found")
        if self.read_only and (path in _CHANGES or path.startswith("/v1/items/")):
            raise HTTPException(
                403, "this service only reads: it takes no events, items or erasures"
            )

        credentials = headers.get(b"authorization", b"")
        if path == "/v1/reload" and self._is_token(credentials, scope["client"]):
            scope["state"]["key"] = "reload-token"
        elif self.keys is not None and role is not Role.OPEN:
            key = _find_key(self.keys, credentials)
            scope["state"].update(key=key.name, role=key.role, caller=key)
            if key.role < role:
                own, needed = key.role.name.lower(), role.name.lower()
                raise HTTPException(403, f"the key's role is {own}; needed: {needed}")
        elif path == "/v1/reload" and self.token is not None:
            raise HTTPException(
                401, "the token is missing or wrong, or of another machine", _BEARER
            )

    def _check_host(self, headers: dict[bytes, bytes], address: str) -> None:
        """Refuse a name that a web page or somebody else gave this machine (DNS rebinding)."""
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        has_port = not host.endswith("]")
        name = (host.rsplit(":", 1)[0] if has_port else host).strip("[]")
        own = address.removeprefix("::ffff:")
        if name != own and name not in _LOOPBACK and name not in self.hosts:
            raise HTTPException(
                421,
                "the service does not answer to this host; --allowed-host admits a name",
            )

    def _is_token(self, credentials: bytes, client: tuple[str, int] | None) -> bool:
        """Tell whether a process on the same machine brought the token."""
        is_local = client is not None and ip_address(client[0]).is_loopback
        is_equal = hmac.compare_digest(credentials, f"Bearer {self.token}".encode())
        return self.token is not None and is_local and is_equal


def _find_key(keys: KeyFile, credentials: bytes) -> Key:
    """Return the key that a request brought, or raise HTTPException."""
    scheme, _, secret = credentials.partition(b" ")
    now = time.monotonic()
    key = keys.find(hashlib.sha256(secret.strip()).digest(), now)
    if key is None or scheme.lower() != b"bearer":
        raise HTTPException(
            401,
            "the key is missing or unknown; expected `Authorization: Bearer KEY`",
            _BEARER,
        )

    if wait := key.take(now):
        raise HTTPException(
            429,
            "the key is used too often; come back later",
            {"retry-after": str(math.ceil(wait))},
        )

    return key


def find_network(address: str) -> str:
    """Return whom an address belongs to: all of an IPv6 network are one client."""
    parsed = ip_address(address.partition("%")[0])
    if not isinstance(parsed, IPv6Address) or parsed.ipv4_mapped:
        return address
    return str(int(parsed) >> (128 - _NETWORK_BITS))
