"""Access: keys with roles and rates, the hosts that are answered, the admin port, and services that only read."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request

from serve.errors import SchemaError, say
from service.http.errors import HANDLERS, LOGGER
from service.http.schemas import ROLES, Role

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_RECHECK_SECONDS = 1.0  # between two looks at the file of keys
_FORM = "NAME ask|write|admin SHA256 [REQUESTS_PER_SECOND [BURST]]"
_LINE = re.compile(
    r"(\S+)\s+(ask|write|admin)\s+([0-9a-f]{64})(?:\s+(\d+(?:\.\d+)?)(?:\s+([1-9]\d*))?)?"
)
_OF_NOTHING = hashlib.sha256(b"").digest()  # of a variable that was not set
_CHANGES = ("/v1/events", "/v1/users/forget")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_BEARER = {"www-authenticate": "Bearer"}
_LOG = logging.getLogger(LOGGER)


@dataclass
class Key:
    """A key, by its SHA-256 digest, and the moment from which its next request is due at its rate."""

    name: str
    role: Role
    digest: bytes
    per_second: float = math.inf
    burst: float = 1
    due: float = 0.0

    def take(self, now: float) -> float:
        """Count a request, or return the seconds until it may come again (the generic cell rate algorithm)."""
        due = max(self.due, now)
        wait = max(due - now - (self.burst - 1) / self.per_second, 0.0)
        self.due = due if wait else due + 1 / self.per_second
        return wait


class KeyFile:
    """The keys of a file, which is read again when it has changed; of a damaged one the keys before it stay."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = (0, 0, 0)
        self._look_at = 0.0
        self._keys: tuple[Key, ...] = ()
        self._read()

    def find(self, digest: bytes, now: float) -> Key | None:
        """Return the key of a digest, after all keys were compared."""
        if now >= self._look_at:
            self._look_at = now + _RECHECK_SECONDS
            try:
                self._read()
            except (OSError, ValueError) as error:
                _LOG.error("the keys stay as they were: %s", say(error))
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return found[-1] if found else None

    def _read(self) -> None:
        now = self._path.stat()
        if (stamp := (now.st_mtime_ns, now.st_size, now.st_ino)) != self._stamp:
            self._stamp = stamp
            before = self._keys
            self._keys = read_keys(self._path)
            if before:
                _LOG.info("%d keys are admitted from now on", len(self._keys))


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read the keys of a file, one a line; `#` begins a comment."""
    lines = [
        line.partition("#")[0].strip()
        for line in path.read_text(encoding="utf-8-sig").splitlines()
    ]
    keys = tuple(
        _read_key(f"{path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line
    )
    if not keys:
        raise SchemaError(f"{path} holds no keys; expected lines of {_FORM}")
    return keys


def _read_key(where: str, line: str) -> Key:
    """Read a line; an error does not repeat it, for it may hold a key in place of its hash."""
    found = _LINE.fullmatch(line)
    if (
        found is None
        or bytes.fromhex(found[3]) == _OF_NOTHING
        or float(found[4] or 1) == 0
    ):
        raise SchemaError(
            f"{where} is no line of a key; expected {_FORM}, and the hash of a key that is not empty"
        )
    per_second = float(found[4] or math.inf)
    burst = float(found[5] or (max(per_second, 1) if found[4] else 1))
    return Key(
        found[1], Role[found[2].upper()], bytes.fromhex(found[3]), per_second, burst
    )


@dataclass(frozen=True)
class Access:
    """The requests that a server admits."""

    keys: KeyFile | None = None
    token: str | None = None  # admits a reload
    hosts: frozenset[str] = (
        frozenset()
    )  # beside loopback and the address that was asked
    admin_port: int | None = None
    read_only: bool = False

    def admit(self, scope: Scope) -> None:
        """Raise HTTPException for a request that is not admitted, by its head alone."""
        headers = dict(scope["headers"])
        path = scope["path"]
        role = ROLES.get(scope["path"], Role.ADMIN)
        if (
            b"content-length" in headers and b"transfer-encoding" in headers
        ):  # proxies read one of them, or the other
            raise HTTPException(
                400,
                "the body has a content-length and a transfer-encoding",
                {"connection": "close"},
            )
        self._check_host(
            headers.get(b"host", b"localhost"), scope["server"][0]
        )  # probes in HTTP/1.0 may send none
        if role is Role.ADMIN and self.admin_port not in (None, scope["server"][1]):
            raise HTTPException(404, "Not Found")
        if self.read_only and (path in _CHANGES or path.startswith("/v1/items/")):
            raise HTTPException(
                403, "this service only reads: it takes no events, items or erasures"
            )
        given = headers.get(b"authorization", b"")
        if (
            path == "/v1/reload"
            and self.token is not None
            and self._is_token(given, scope["client"])
        ):
            scope["state"]["key"] = "reload-token"
            return
        if self.keys is not None and role is not Role.OPEN:
            key = _find_key(self.keys, given)
            scope["state"].update(key=key.name, role=key.role)
            if key.role < role:
                raise HTTPException(
                    403,
                    f"the key's role is {key.role.name.lower()}; needed: {role.name.lower()}",
                )

    def _check_host(self, given: bytes, here: str) -> None:
        """Refuse a name that somebody else gave to this machine, such as a web page (DNS rebinding)."""
        host = given.decode("latin-1").lower()
        name = (host if host.endswith("]") else host.rsplit(":", 1)[0]).strip("[]")
        if (
            name not in _LOOPBACK
            and name not in self.hosts
            and name != here.removeprefix("::ffff:")
        ):
            raise HTTPException(
                421,
                "the service does not answer to this host; --allowed-host admits a name",
            )

    def _is_token(self, given: bytes, client: tuple[str, int] | None) -> bool:
        """Tell whether the token admits a reload; raise where no key could."""
        is_here = client is not None and ip_address(client[0]).is_loopback
        if is_here and hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            return True
        if self.keys is None and not is_here:
            raise HTTPException(
                403, "only a process on the same machine may ask for a reload"
            )
        if self.keys is None:
            raise HTTPException(401, "the token is missing or wrong", _BEARER)
        return False


def _find_key(keys: KeyFile, given: bytes) -> Key:
    """Return the key that a request brought, or raise HTTPException: there is none, or it comes too often."""
    scheme, _, secret = given.partition(b" ")
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


class AccessMiddleware:
    """Answer requests that are not admitted, before anything of their bodies is read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        try:
            if scope["type"] == "http":
                self._access.admit(scope)
        except HTTPException as error:
            await (await HANDLERS[HTTPException](Request(scope), error))(
                scope, receive, send
            )
        else:
            await self._app(scope, receive, send)
