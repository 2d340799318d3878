"""Fetching public recordings, from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moesim.cli import main
from moesim.errors import InputError
from moesim.routing import downloads
from moesim.routing.downloads import PublicTrace, download, fetch_trace, public_traces
from moesim.routing.formats import find_format
from moesim.routing.trace import RoutingTrace
from tests.fixtures.recordings import drawn_ids, narrow_csv

pytest.importorskip("pooch", reason="pooch is an extra")

IDS = drawn_ids(6)
BODY = narrow_csv(IDS, np.full(IDS.shape, 0.5), range(10, 16)).encode()


class Server(http.server.ThreadingHTTPServer):
    """Counts requests; `cut` bytes are sent where the length was announced in full."""

    body: bytes = BODY
    cut: int | None = None
    requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path != "/data/route.csv":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body[: self.server.cut])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def entry(server: Server, file: str = "route.csv") -> PublicTrace:
    host, port = server.server_address[:2]
    content = {"sha256": hashlib.sha256(BODY).hexdigest(), "bytes": len(BODY)}
    return PublicTrace.parse(
        {
            "name": "toy-python",
            "about": "a toy",
            "model": "toy",
            "experts": 8,
            "phase": "decode",
            "domain": "python",
            "format": "csv",
            "licence": "MIT",
            "licence_url": "https://example.org/LICENSE",
            "base_url": f"http://{host!s}:{port}/data/",
            "files": {file: content},
        }
    )


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_recording_is_fetched_once_and_imported(tmp_path: Path, server: Server) -> None:
    trace = fetch_trace(entry(server), tmp_path)
    assert isinstance(trace, RoutingTrace)
    np.testing.assert_array_equal(trace.ids_TLK, IDS)
    assert trace.domains == ("python",)
    assert trace.provenance["licence"] == "MIT (https://example.org/LICENSE)"
    assert left(tmp_path) == [tmp_path / "route.csv"]
    server.body = b"something else by now"
    fetch_trace(entry(server), tmp_path)
    assert server.requests == 1
    # A file that was changed on disk is fetched again, not believed.
    (tmp_path / "route.csv").write_bytes(BODY[:-1])
    server.body = BODY
    fetch_trace(entry(server), tmp_path)
    assert server.requests == 2


@pytest.mark.parametrize(
    ("body", "cut", "message"),
    [
        (BODY.replace(b"0.5", b"0.7", 1), None, "it was thrown away"),
        (BODY + bytes(10**6), None, "it was thrown away"),
        (b"", None, "it was thrown away"),
        (BODY, 40, ""),
    ],
    ids=["other", "longer", "empty", "interrupted"],
)
def test_nothing_is_left_of_what_is_not_right(
    tmp_path: Path, server: Server, body: bytes, cut: int | None, message: str
) -> None:
    server.body, server.cut = body, cut
    with pytest.raises(InputError) as error:
        download(entry(server), tmp_path)
    assert message in str(error.value)
    assert str(error.value).startswith("http://127.0.0.1")
    assert "\n" not in str(error.value)
    assert left(tmp_path) == []


def test_a_download_that_is_interrupted_here_leaves_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(entry(server), tmp_path)
    assert left(tmp_path) == []


def test_a_server_that_does_not_answer_is_one_line(tmp_path: Path, server: Server) -> None:
    with pytest.raises(InputError, match="the server answered 404"):
        download(entry(server, "other.csv"), tmp_path)
    gone = entry(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot be downloaded") as error:
        download(gone, tmp_path)
    assert "\n" not in str(error.value)


def test_the_command_shows_the_licence(
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(downloads, "public_traces", lambda: (entry(server),))
    monkeypatch.setenv("MOESIM_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["trace", "fetch"]) == 0
    assert "toy-python" in capsys.readouterr().out
    out = tmp_path / "toy.safetensors"
    assert main(["trace", "fetch", "toy-python", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "MIT (https://example.org/LICENSE)" in shown
    assert shown.index("MIT") < shown.index("Wrote")
    assert RoutingTrace.open(out).tokens == 6
    assert main(["trace", "fetch", "toy", "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_pooch_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(InputError, match=r"needs the package pooch \(pip install"):
        download(public_traces()[0], tmp_path)


def test_the_shipped_list_is_sound() -> None:
    traces = public_traces()
    assert len({trace.name for trace in traces}) == len(traces) >= 7
    for trace in traces:
        assert trace.base_url.startswith("https://raw.githubusercontent.com/")
        assert trace.licence_url.startswith("https://github.com/")
        find_format(trace.format)
        # At one commit, 40 hex digits: a branch would change under the hash.
        assert any(len(part) == 40 and int(part, 16) for part in trace.base_url.split("/"))
        assert all("/" not in name and not name.startswith(".") for name in trace.files)
