"""The dashboard's pages over HTTP, on the loopback interface. The page of a run is its report, kept up to date.

/                                   all runs
/runs/NAME/                         one run; with ?part=body what the open page replaces its content with
/runs/NAME/stages/STAGE/artifact/report.html   the report of prepared data
"""

import contextlib
import hashlib
import http.server
import re
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from finecut.launcher import report, runs
from finecut.launcher.views import page
from finecut.launcher.views.run_view import RunReader
from finecut.proto.config import UserError

_HERE = Path(__file__).parent
_RUN = re.compile(r"/runs/([a-z][a-z0-9-]*)(/.*)?")
_DATA_REPORT = re.compile(r"/(stages/[a-z][a-z0-9_-]*/artifact/report\.html)")
# Pages are ours, but they show text of users: nothing but our own script runs, and nothing is fetched from elsewhere.
_POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Answer:
    """What is sent."""

    content: str
    kind: str = "text/html"
    status: HTTPStatus = HTTPStatus.OK
    location: str | None = None


class Pages:
    """The pages of all runs below a storage root. Threads may share it."""

    def __init__(self, storage_root: Path, tensorboard: str) -> None:
        self._root = storage_root
        self._tensorboard = tensorboard
        self._environment = page.templates(_HERE)
        self._lock = threading.Lock()
        self._readers: dict[str, tuple[object, RunReader]] = {}

    def answer(self, path: str, body_only: bool) -> Answer:
        """The page at a path; one that says in a sentence what is wrong where there is none."""
        if path == "/":
            return Answer(self._index())
        if path == "/live.js":
            return Answer((_HERE / "live.js").read_text(encoding="utf-8"), "text/javascript")
        if not (found := _RUN.fullmatch(path)):
            return self._sentence(f"There is no page {path}.", HTTPStatus.NOT_FOUND)
        name, rest = found[1], found[2]
        if not rest:
            return Answer("", status=HTTPStatus.MOVED_PERMANENTLY, location=f"/runs/{name}/")
        try:
            folder = runs.find(self._root, name)
            if data_report := _DATA_REPORT.fullmatch(rest):
                return Answer((folder.root / data_report[1]).read_text(encoding="utf-8"))
            if rest == "/":
                return Answer(self._run(name, folder.config, body_only))
        except (UserError, OSError) as error:
            return self._sentence(str(error), HTTPStatus.NOT_FOUND)
        return self._sentence(f"There is no page {path}.", HTTPStatus.NOT_FOUND)

    def _run(self, name: str, config: Path, body_only: bool) -> str:
        status = config.stat()
        version = (status.st_ino, status.st_mtime_ns)  # another one: the folder was deleted, and the run started anew
        with self._lock:
            if name not in self._readers or self._readers[name][0] != version:
                self._readers[name] = (version, RunReader(config.parent))
            view = self._readers[name][1].read()
            return page.render(view, page.Live(self._tensorboard, "/"), body_only)

    def _index(self) -> str:
        """Newest first; a run's config is written once, when it is first started."""
        found = []
        for folder in runs.list_runs(self._root):
            with contextlib.suppress(FileNotFoundError):  # it was deleted just now
                found.append((folder.root.name, report.state_of(folder), folder.config.stat().st_mtime))
        found.sort(key=lambda run: run[2], reverse=True)
        return self._render(runs=found, root=str(self._root), tensorboard=self._tensorboard, sentence="")

    def _sentence(self, text: str, status: HTTPStatus) -> Answer:
        return Answer(self._render(runs=[], root="", tensorboard="", sentence=text), status=status)

    def _render(self, **values: object) -> str:
        return self._environment.get_template("index.html.jinja").render(**values)


def make_server(pages: Pages, port: int) -> http.server.ThreadingHTTPServer:
    """A server on the loopback interface, bound but not yet at work. Raises OSError where the port is taken."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), _handler(pages.answer))


def _handler(answer: Callable[[str, bool], Answer]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        server_version = "finecut"

        def do_GET(self) -> None:
            # A page elsewhere may point a name of its own to 127.0.0.1; it must not read ours through it.
            host = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 and localhost only")
                return
            url = urllib.parse.urlsplit(self.path)
            found = answer(urllib.parse.unquote(url.path), url.query == "part=body")
            content = found.content.encode()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            same = found.status == HTTPStatus.OK and self.headers.get("If-None-Match") == tag
            self.send_response(HTTPStatus.NOT_MODIFIED if same else found.status)
            for name, value in (
                ("Content-Type", f"{found.kind}; charset=utf-8"),
                ("Content-Length", "0" if same else str(len(content))),
                ("ETag", tag),
                ("Cache-Control", "no-cache"),
                ("Content-Security-Policy", _POLICY),
                ("X-Content-Type-Options", "nosniff"),
            ):
                self.send_header(name, value)
            if found.location:
                self.send_header("Location", found.location)
            self.end_headers()
            if not same:
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """A page that looks every two seconds is not worth a line each."""

    return Handler
