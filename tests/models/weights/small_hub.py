"""A server that knows as much of the hub's API as a download needs: revisions, listings, and files by commit."""

import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)")
FILE = re.compile(r"(?P<place>/storage)?/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


def commit(repository, revision):
    """The commit that a revision points to."""
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


class SmallHub(http.server.ThreadingHTTPServer):
    """Serves `{repository: {revision: directory}}` on a free port, in a `with` block.

    `asked` holds the path of every request.

    Weights lie on another host, as the large files of the hub do: a request for one is answered with where it is. The
    files of `gated` repositories are refused, and those of `forbidden` and `broken` ones are not even listed.
    """

    def __init__(self, repositories, *, gated=(), forbidden=(), broken=()):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.gated, self.forbidden, self.broken = gated, forbidden, broken
        self.asked = []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    @property
    def port(self):
        return self.server_address[1]

    def files(self):
        """The names of the files that were asked for."""
        return {match["path"] for path in self.asked if (match := FILE.fullmatch(path))}


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Prints nothing; `asked` has it all."""

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        match = API.fullmatch(path) or FILE.fullmatch(path)
        if match is None:
            return self._answer(404)
        repository, revision = match["id"], unquote(match["revision"])
        if repository in self.server.broken:
            return None  # the connection ends here
        if repository in self.server.forbidden:
            return self._answer(403, {"X-Error-Message": "no such right"})
        if repository not in self.server.repositories:
            return self._answer(401, {"X-Error-Code": "RepoNotFound"})
        commits = {commit(repository, name): folder for name, folder in self.server.repositories[repository].items()}
        sha = revision if revision in commits else commit(repository, revision)
        if sha not in commits:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        if match.re is API:
            return self._listed(match["what"], repository, sha, commits[sha])
        return self._file(match, sha, commits[sha] / unquote(match["path"]))

    do_HEAD = do_GET

    def _listed(self, what, repository, sha, folder):
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        if what == "tree":
            rows = {name: {"size": len(data), "oid": hashlib.sha1(data).hexdigest()} for name, data in files.items()}
            content = [{"type": "file", "path": name, **row} for name, row in rows.items()]
        else:
            content = {"id": repository, "sha": sha, "siblings": [{"rfilename": name} for name in files]}
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _file(self, match, sha, file):
        if match["id"] in self.server.gated:
            return self._answer(403, {"X-Error-Code": "GatedRepo"})
        data, headers = file.read_bytes(), {"X-Repo-Commit": sha}
        if file.suffix == ".safetensors" and not match["place"]:
            headers["Location"] = f"http://localhost:{self.server.port}/storage{match[0]}"
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
            return self._answer(302, headers | linked)
        return self._answer(200, headers | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data)

    def _answer(self, status, headers=None, data=b""):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
