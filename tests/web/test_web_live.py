"""What only a real server shows: where it listens, what it prints, and that large and slow requests cost it nothing."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gro.errors import GroError
from gro.web.serve import listen
from web.live import Server

pytestmark = pytest.mark.timeout(600)
LONG = 60
"""Seconds to wait for what has to come, on a machine that has much else to do."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all of these."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "data.jsonl").write_text(json.dumps({"prompt": "p", "completions": ["a", "b"]}) + "\n")
    server = Server(folder, str(folder / "data.jsonl")).start()
    yield server
    server.end()


def memory(server: Server) -> int:
    """Resident bytes of the server."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def descriptors(server: Server) -> int:
    """Open files of the server, connections among them."""
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def raw(server: Server, sent: bytes, seconds: float = LONG) -> bytes:
    """What comes back for these bytes, until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(sent)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


@pytest.mark.fault("W6")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_listens_on_the_loopback_address_only(server):
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    where = [
        line[1].split(":")[0] for line in lines if int(line[1].split(":")[1], 16) == server.port and line[3] == "0A"
    ]
    assert where == ["0100007F"]
    lines = Path("/proc/net/tcp6").read_text().splitlines()[1:]
    assert not any(int(x.split()[1].split(":")[1], 16) == server.port and x.split()[3] == "0A" for x in lines)


@pytest.mark.fault("W6")
def test_the_token_is_printed_once_and_never_logged(server):
    token = server.address.split("token=")[1]
    assert len(token) >= 32
    assert server.said.count(token) == 1
    raw(server, f"GET /?token={token} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n".encode())
    raw(server, f"GET /x?token={token} HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n".encode())
    assert token not in (server.folder / "stderr.txt").read_text()


@pytest.mark.fault("W7")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_a_gigabyte_costs_no_memory(server, chunked):
    """G15: less than 10 MB more, whether the size is told or not."""
    head = "".join(f"{k}: {v}\r\n" for k, v in server.credentials.items())
    size = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {1 << 30}"
    start = f"POST /api/label/save HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{head}{size}\r\n\r\n".encode()
    before, sent, answer = memory(server), 0, b""
    piece = b"x" * (1 << 16)
    piece = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
    with socket.create_connection(("127.0.0.1", server.port), timeout=LONG) as connection:
        connection.sendall(start)
        with suppress(OSError):
            while sent < 1 << 30:
                connection.sendall(piece)
                sent += len(piece)
        with suppress(OSError):  # reset while we were still sending: what it said may be lost on the way
            answer = connection.recv(4096)
    assert sent < 64 << 20
    assert not answer or b" 413 " in answer.split(b"\r\n")[0]
    assert memory(server) - before < 10 << 20


@pytest.mark.fault("W7")
def test_what_is_told_to_be_too_large_is_refused_at_once(server):
    head = "".join(f"{k}: {v}\r\n" for k, v in server.credentials.items())
    answer = raw(server, f"POST /api/label/save HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{head}"
                         f"Content-Length: {1 << 30}\r\n\r\n".encode())  # fmt: skip
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.fault("W7")
def test_a_head_without_end_is_refused(server):
    answer = raw(server, b"GET / HTTP/1.1\r\n" + b"X-A: " + b"a" * 20_000)
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.fault("W7")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_thousands_of_silent_connections_are_few(server):
    """Those too many are closed, it still answers who has one already, and in the end those without a request go."""
    before = memory(server)
    asking = server.connect()
    asking.request("GET", "/api/label/setting", headers=server.credentials)
    assert asking.getresponse().read()
    idle = []
    try:
        for _ in range(900):
            idle.append(socket.create_connection(("127.0.0.1", server.port), timeout=LONG))
        idle[0].sendall(b"GET")
        asking.request("GET", "/api/label/setting", headers=server.credentials)
        assert json.loads(asking.getresponse().read())["kind"] == "pairs"
        deadline = time.monotonic() + LONG
        while (opened := descriptors(server)) >= 300 and time.monotonic() < deadline:
            time.sleep(0.05)  # the last of them are still on their way out
        assert opened < 300
        assert memory(server) - before < 10 << 20
        assert idle[0].recv(4096).startswith(b"HTTP/1.1 408")
    finally:
        for connection in idle:
            connection.close()
        asking.close()
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:  # then there is room again
        try:
            asking = server.connect()
            asking.request("GET", "/api/label/setting", headers=server.credentials)
            assert asking.getresponse().status == 200
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("it does not answer any more")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_without_a_traceback(tmp_path, how):
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "p", "completions": ["a", "b"]}) + "\n")
    server = Server(tmp_path, str(tmp_path / "data.jsonl")).start()
    code = server.end(how)
    assert code == (0 if how == signal.SIGINT else -signal.SIGTERM)
    assert (tmp_path / "stderr.txt").read_text() == ""
    assert not (tmp_path / "labels.db-wal").exists() or how == signal.SIGTERM


def test_a_port_that_is_taken_says_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(GroError, match=r"--port \d+ cannot be had: Address already in use"):
            listen(taken.getsockname()[1])
