"""Keys, roles, rates, hosts, ports and framing: what is not admitted is refused by its head, and one request is one."""

import asyncio
import hashlib
import random
import re
import socket
import subprocess
import sys
import time

import pytest

from serve.http import access
from serve.http.access import Key, KeyFile, read_keys
from serve.http.schemas import Role
from tests.http.services import TOKEN, asking, publish_served
from tests.linear_bundle import SHOP, item_ids
from tests.served import JSON, ROOT, ask, exchange, serving, write_request

KEYS = {role: f"{role}-{'0123456789abcdef' * 2}" for role in ("ask", "write", "admin")}
ITEM = item_ids(SHOP)[0]
EVENT = {"user_id": "u1", "item_id": ITEM}
# path and body -> the roles that it admits, None being no key
CALLS = {
    ("GET", "/health", None): {None, "ask", "write", "admin"},
    ("GET", "/ready", None): {None, "ask", "write", "admin"},
    ("GET", "/", None): {None, "ask", "write", "admin"},
    ("POST", "/v1/recommend", "{}"): {"ask", "write", "admin"},
    ("POST", "/v1/similar", {"item_id": ITEM}): {"ask", "write", "admin"},
    ("GET", "/openapi.json", None): {"ask", "write", "admin"},
    ("POST", "/v1/events", EVENT): {"write", "admin"},
    ("PUT", f"/v1/items/{ITEM}", {"columns": {"in_stock": True}}): {"admin"},
    ("DELETE", "/v1/items/none", None): {"admin"},
    ("POST", "/v1/users/forget", {"user_id": "nobody"}): {"admin"},
    ("GET", "/v1/status", None): {"admin"},
    ("GET", "/metrics", None): {"admin"},
    ("POST", "/v1/reload", None): {"admin"},
}
