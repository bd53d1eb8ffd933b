"""A crowd of silent connections, each of its own address in one IPv6 network; used by a test, in a network of its own.

    unshare --net sh -c 'ip link set lo up && ip -6 route add local 2001:db8::/32 dev lo && exec "$@"' sh \
        python -m tests.service.crowd BUNDLE

Twenty clients of other networks connect first and ask last; prints the status of each, 0 for a connection that was cut.
"""

import json
import socket
import sys
from contextlib import ExitStack

from tests.served import read_reply, serving, write_request

IPV6_FREEBIND = 78  # of Linux; an address need not be that of an interface
N_GOOD, N_SILENT = 20, 560


def connect(stack, port, source):
    connection = stack.enter_context(socket.socket(socket.AF_INET6))
    connection.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    connection.settimeout(20)
    connection.bind((source, 0))
    connection.connect(("::1", port))
    return connection


def ask(connection):
    try:
        connection.sendall(write_request("POST", "/v1/recommend", {"user_id": "u1", "k": 2}))
        return read_reply(connection).status
    except OSError:
        return 0


def main(bundle):
    with serving("--bundle", bundle, "--host", "::1") as server, ExitStack() as stack:
        good = [
            connect(stack, server.port, f"2001:db8:0:{number:x}::1")
            for number in range(1, N_GOOD + 1)
        ]
        for number in range(1, N_SILENT + 1):
            connect(stack, server.port, f"2001:db8:ffff:ffff::{number:x}")
        print(json.dumps([ask(connection) for connection in good]))


if __name__ == "__main__":
    main(sys.argv[1])
