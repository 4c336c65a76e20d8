"""The lab: every page, from a store of any kind, and nobody gets in or out who should not."""

from __future__ import annotations

import html
import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient
from web_lab import COUNT, answered, examination, findings, trained

from microtome.errors import StoreError, UsageError
from microtome.finding import Coverage, Figure, Finding, Quantity, Table
from microtome.progress import Progress, Silent, Written, read_progress
from microtome.report import single
from microtome.report.layers import exciting, layers, wasteful
from microtome.store import Filter, Store, open_store
from microtome.store.arrays import array_path
from microtome.web import address, application, listen

HOME = "http://127.0.0.1:7345"
EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" '{{ 7919 * 7927 }}'"
OWN = {"origin": HOME, "sec-fetch-site": "same-origin"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path) as opened:
        opened.save(examination())
        second = examination("e2", "2026-11-22T10:00:00Z", findings=findings(1, accuracy=0.6))
        second.subject["name"] = "a pruned network"
        opened.save(second)
        yield opened


def lab(store: Store, **options: Any) -> TestClient:
    return TestClient(application(store, **options), base_url=HOME, raise_server_exceptions=True)


class Page(HTMLParser):
    """A page as a browser reads it: what runs, what it loads, where it leads, what it says."""

    VOID = frozenset(("meta", "img", "br", "link", "input", "hr"))

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.images: list[str] = []
        self.handlers: list[str] = []
        self.unnamed: list[str] = []
        self.words = ""
        self.ids: list[str] = []
        self._quiet = ""
        self.stack: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.handlers += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        self.ids += [given["id"]] if "id" in given else []
        if tag == "script":
            self.scripts.append(given.get("src", given.get("type", "inline")))
        if tag in ("a", "form", "link"):
            self.links += [v for k, v in given.items() if k in ("href", "action")]
        if tag == "img":
            self.images.append(given["src"])
            self.unnamed += [] if given.get("alt") else ["img"]
        if tag == "svg" and given.get("role") == "img" and "aria-label" not in given:
            self.unnamed.append("svg" if "wiring" not in given.get("class", "") else "")
        self._quiet = tag if tag in ("script", "style") else self._quiet
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        self._quiet = "" if tag == self._quiet else self._quiet
        assert self.stack and self.stack.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.words += data


PAGES = (
    "/", "/?words=pruned", "/?page=2", "/?grade=alarm", "/running", "/e/e1", "/e/e1/f/reliability/calibration",
    "/e/e1/f/architect/wiring", "/e/e1/layers?layer=relu&unit=3", "/e/e1/layers/unit?layer=relu&unit=7&bare=1",
    "/e/e1/layers/unit?layer=relu&unit=2", "/e/e1/layers", "/e/e1/layers?layer=relu%232",
    "/e/e1/layers?layer=fc&bare=1",
    "/e/e1/examples", "/e/e1/examples?sort=margin&down=0&wrong=1&label=1&bare=1", "/e/e1/examples/17",
    "/e/e1/examples/worst", "/e/e1/examples/40", "/compare", "/compare?of=e1", "/compare?of=e1&of=e2",
    "/compare?of=e1,e2&of=e1", "/compare?groups=1", "/atlas", "/atlas/deep-grokking",
    "/e/e1/f/reliability/examples?bare=1",
)  # fmt: skip


def papers() -> list[Any]:
    from microtome.atlas import Entry
    from microtome.papers import states

    return [Entry(standing=one) for one in states({}, {})]


@pytest.mark.parametrize("path", PAGES)
def test_every_page(store: Store, path: str) -> None:
    client = lab(store, atlas=papers)
    for _ in range(40):
        answer = client.get(path)
        if "is being read" not in answer.text:
            break
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text[:400]
    page = Page(answer.text)
    assert page.stack == [] and page.handlers == [] and not any(page.unnamed)
    assert len(page.ids) == len(set(page.ids))
    assert all(s.startswith("/static/") or s == "application/json" for s in page.scripts)
    assert all(i.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for i in page.images)
    assert not any("//" in link for link in page.links), page.links
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_every_link_leads_somewhere(store: Store) -> None:
    store.save(trained())
    client, seen, waiting = lab(store), set(), ["/", "/compare?of=t1"]
    while waiting and len(seen) < 400:
        path = waiting.pop()
        answer = client.get(path)
        assert answer.status_code in (200, 303), (path, answer.status_code)
        if "text/html" not in answer.headers["content-type"] or "attachment" in str(answer.headers):
            continue
        for link in Page(answer.text).links:
            target = re.sub("#.*", "", link)
            target = target if target.startswith("/") else path.split("?")[0] + target if target else ""
            # One of each kind is enough: examples and sort orders differ by a number alone.
            kind = re.sub(r"examples/\d+.*", "examples/N", re.sub(r"v=\w+", "v", target))
            if target and kind not in seen and not target.endswith("/tags"):
                seen.add(kind)
                waiting.append(target)
    assert {"/atlas", "/compare", "/e/e1/layers", "/e/e2/examples", "/e/t1/report.html"} <= seen
    assert "/e/e1/examples/N" in seen


def test_the_five_questions_are_answered(store: Store) -> None:
    words = Page(lab(store).get("/e/e1").text).words
    assert (
        "13 mistakes: 2 taken for 1 (9×), 0 taken for 1 (4×)" in words
    )  # which class is confused with which
    assert "Confidences are off by 0.31." in words  # whether the probabilities can be trusted
    assert "fc: 90% of its 800 weights can go alone, 72% of all weights" in words  # which layer is wasteful
    assert "17 (2 taken for 0)" in words
    why = Page(lab(store).get("/e/e1/examples/17").text).words
    assert "Why is example 17 wrong?" in why and "labelled 2, answered 0" in " ".join(why.split())
    assert "0.73" in why and "gain over random" in why  # the judge of its map
    changed = " ".join(Page(lab(store).get("/compare?of=e1&of=e2").text).words.split())
    assert "accuracy How often is it right?" in changed
    assert "Larger than noise" in changed and "exact McNemar" in changed and "worse" in changed


def test_findings_open_in_place_and_by_address(store: Store) -> None:
    client = lab(store)
    page = client.get("/e/e1").text
    assert 'id="f-reliability--calibration"' in page
    assert 'data-load="/e/e1/f/reliability/calibration?bare=1"' in page
    part = client.get("/e/e1/f/reliability/calibration?bare=1").text
    assert "<html" not in part and "a stated source" in part and "15 bins." in part
    spec = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', part)[0])
    assert spec["data"]["values"][0] == {"c": 0.1, "a": 0.2}


def test_the_report_is_the_same_as_ever(store: Store) -> None:
    answer = lab(store).get("/e/e1/report.html")
    assert 'filename="e1.html"' in answer.headers["content-disposition"]
    assert "<style>" in answer.text and "vega" in answer.text


# --- lists --------------------------------------------------------------------------------------------


def test_pages_filters_and_search(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for i in range(120):
            exam = examination(f"x{i:03d}", f"2026-01-01T00:{i // 60:02d}:{i % 60:02d}Z", findings={})
            exam.subject["name"] = "even % _net" if i % 2 == 0 else "odd net"
            if i == 5:
                exam.findings = findings()
            store.save(exam)
        store.tag("x007", "chosen")
        lines, total = store.page(Filter(), 50, 50)
        assert (total, lines[0].id, lines[-1].id) == (120, "x069", "x020")
        assert [line.id for line in store.page(Filter(grade="alarm"))[0]] == ["x005"]
        assert store.page(Filter(words="EVEN"))[1] == 60
        assert store.page(Filter(words="% _"))[1] == 60  # no wildcards of SQL
        assert store.page(Filter(words="n%t"))[1] == 0
        assert [line.id for line in store.page(Filter(tag="chosen"))[0]] == ["x007"]
        assert [line.id for line in store.page(Filter(words="chos odd"))[0]] == ["x007"]
        assert store.subjects() == [("odd net", 60), ("even % _net", 60)]
        one = store.lines(["x005"])[0]
        assert (one.alarms, one.watches, one.goods, one.failed, one.findings) == (1, 1, 1, 1, 13)
        client = lab(store)
        first, last = client.get("/"), client.get("/?page=3")
        assert "page 1 of 3" in first.text and first.text.count("data-item") == 50
        assert last.text.count("data-item") == 20 and "Older" not in last.text
        assert "No examination fits" in client.get("/?words=nothing").text
        for odd in ("/?page=-1", "/?page=x", "/?page=99999999999999999999", "/?status=%00&grade=x"):
            assert client.get(odd).status_code == 200


def test_an_empty_store_says_how_to_begin(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        client = lab(store)
        assert (
            "microtome examine" in client.get("/").text
            and "<form" not in client.get("/").text.split("<dialog")[0]
        )
        assert "There is no other examination" in client.get("/compare").text
        assert client.get("/e/latest").status_code == 404
        store.save(examination(findings={}))
        assert "Nothing was measured" in client.get("/e/e1").text
        assert "No finding speaks of layers" in client.get("/e/e1/layers").text
        assert "No finding speaks of single examples" in client.get("/e/e1/examples").text
        assert client.get("/e/e1/examples/worst").status_code == 404
        assert client.get("/e/latest").url.path == "/e/e1"


def test_tags(store: Store) -> None:
    client = lab(store)
    done = client.post("/e/e1/tags", data={"add": " base line "}, headers=OWN, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/e/e1")
    assert "base line" in client.get("/e/e1").text and "base line (1)" in client.get("/").text
    client.post("/e/e1/tags", data={"remove": "base line"}, headers=OWN)
    assert store.all_tags() == []
    for wrong in ("<b>", "x" * 65, "'; DROP TABLE tags; --"):
        assert client.post("/e/e1/tags", data={"add": wrong}, headers=OWN).status_code == 400
    assert client.post("/e/none/tags", data={"add": "a"}, headers=OWN).status_code == 404
    for i in range(32):
        store.tag("e1", f"t{i}")
    with pytest.raises(StoreError, match="has 32 tags"):
        store.tag("e1", "one more")
    store.delete("e1")
    assert store.all_tags() == []


def test_a_store_of_an_earlier_version_gets_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from microtome.store import database

    with open_store(tmp_path) as store:
        store.save(examination())
    with sqlite3.connect(tmp_path / "microtome.db") as raw:
        raw.executescript("DROP TABLE tags; DROP INDEX findings_states;")
    raw.close()
    with monkeypatch.context() as patched:
        patched.setattr(database.os, "access", lambda path, mode: False)
        with open_store(tmp_path) as store:  # can only be read: no tags, and no fault
            assert store.all_tags() == [] and store.page(Filter(tag="x"))[1] == 0
            assert lab(store).get("/").status_code == 200
            assert lab(store).post("/e/e1/tags", data={"add": "a"}, headers=OWN).status_code == 403
    with open_store(tmp_path) as store:
        store.tag("e1", "a")
        assert store.lines(["e1"])[0].tags == ("a",)


# --- a run at work ------------------------------------------------------------------------------------


def test_a_running_examination_is_followed(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.begin(examination("r1", findings={}))
        watcher = Written(Silent(), store.run_folder("r1"), instruments=4)
        watcher.round_started(1, 100, ("a/b", "c/d", "e/f", "g/h"))
        client = lab(store)
        assert "nothing is measured yet" in client.get("/e/r1").text
        assert client.get("/e/r1/state").json()["text"].startswith("0 of 4 instruments have answered")
        watcher.progress.at = 0.0
        watcher.advanced(50)
        assert client.get("/e/r1/state").json()["share"] == 0.5
        found = Finding(instrument="a/b", headline="x", quantities={"x": Quantity(value=1)})
        store.save_finding("r1", found)
        watcher.found(found)
        state = client.get("/e/r1/state").json()
        assert (
            state["mark"] == "running-1" and "1 of 4" in state["text"] and "50% of its rows" in state["text"]
        )
        assert "a network" in client.get("/running?bare=1").text
        assert "1 of 4" in client.get("/e/r1").text
        assert "may come yet" in client.get("/e/r1/examples").text
        assert "may come yet" in client.get("/e/r1/layers").text
        progress = read_progress(store.run_folder("r1"))
        assert progress is not None and progress.found == 1
        progress.at = time.time() - 1000
        (store.run_folder("r1") / "progress.json").write_bytes(msgspec.json.encode(progress))
        assert "may have been killed" in client.get("/running?bare=1").text
        assert "microtome examine --resume r1" in client.get("/").text
        (store.run_folder("r1") / "progress.json").write_text("{half")
        assert client.get("/").status_code == 200
        store.finish("r1", "complete")
        assert client.get("/running?bare=1").text.strip() == ""


def test_examine_writes_down_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import microtome

    seen: list[Progress] = []

    def note(self: Written) -> None:
        real(self)
        found = read_progress(self.folder)
        if found:
            seen.append(found)

    real = Written._write
    monkeypatch.setattr(Written, "_write", note)
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 2))
    data = [(torch.randn(20, 4), torch.arange(20) % 2)]
    microtome.examine(model, data, only=("accuracy", "cost"), store=str(tmp_path), calibration="none")
    assert seen[0].instruments == 2 and seen[-1].found == 2 and max(p.round for p in seen) >= 1


WRITER = """
import sys
import numpy as np
from microtome.finding import Examination, Finding, Quantity
from microtome.store import open_store
folder, me = sys.argv[1:]
with open_store(folder) as store:
    own = Examination(id=f"own{me}", created=me, subject={"name": me}, findings={})
    store.begin(own)
    for i in range(25):
        made = Finding(instrument=f"w{me}/i{i}", headline="x", quantities={"x": Quantity(value=i)},
                       arrays={"a": np.full(50, float(me))})
        store.save_finding("shared", made)
        store.save_finding(own.id, made)
        if i % 5 == 0:
            store.tag("shared", f"{me} {i}")
    store.finish(own.id, "complete")
"""


def test_two_writers_and_a_reader_lose_nothing(tmp_path: Path) -> None:
    import microtome

    source = str(Path(next(iter(microtome.__path__))).parent)
    with open_store(tmp_path) as store:
        store.begin(examination("shared", findings={}))
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(me)],
                env={"PYTHONPATH": source},
                stderr=subprocess.PIPE,
                text=True,
            )
            for me in (0, 1)
        ]
        client, counts, asked = lab(store), [0], 0
        while any(worker.poll() is None for worker in workers):
            for path in ("/", "/e/shared", "/running?bare=1"):
                assert client.get(path).status_code == 200
            counts.append(client.get("/e/shared/state").json()["found"])
            asked += 1
        complaints = [worker.communicate(timeout=60)[1] for worker in workers]
        assert all(worker.returncode == 0 for worker in workers), complaints
        assert counts == sorted(counts) and asked > 3
        assert client.get("/e/shared/state").json()["found"] == 50
        reading = store.read("shared")
        assert len(reading.exam) == 50 and not reading.damaged
        assert len(store.lines(["shared"])[0].tags) == 10
        for name, each in store.load("shared").findings.items():
            assert (each.arrays["a"] == float(name[1])).all()


# --- who may ask --------------------------------------------------------------------------------------


def test_another_name_is_refused(store: Store) -> None:
    client = lab(store)
    for host in ("evil.example", "evil.example:7345", "127.0.0.1.evil.example", "", "[::1", "a@127.0.0.1.x"):
        assert client.get("/", headers={"host": host}).status_code == 421, host
    for host in ("localhost:1", "127.0.0.1", "[::1]:7345", "LOCALHOST"):
        assert client.get("/", headers={"host": host}).status_code == 200, host
    assert (
        lab(store, hosts=("lab.example",), token="t" * 20)
        .get("/", headers={"host": "lab.example"})
        .status_code
        == 401
    )


def test_another_site_can_neither_read_nor_write(store: Store) -> None:
    client = lab(store)
    for site in ("cross-site", "same-site"):
        for mode, dest in (
            ("no-cors", "image"),
            ("no-cors", "script"),
            ("cors", "empty"),
            ("navigate", "iframe"),
        ):
            headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
            assert client.get("/e/e1", headers=headers).status_code == 403
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/e/e1", headers=followed).status_code == 200
    wrong = (
        {}, {"origin": "null"}, {"origin": "http://evil.example"}, {"origin": "http://127.0.0.1:9999"},
        OWN | {"sec-fetch-site": "cross-site"}, {"origin": f"{HOME}.evil.example"},
    )  # fmt: skip
    for headers in wrong:
        assert client.post("/e/e1/tags", data={"add": "bad"}, headers=headers).status_code == 403
    assert client.post("/e/e1/tags", content=b"add=" + b"x" * 5000, headers=OWN).status_code == 413
    assert client.post("/e/e1/tags", content=iter([b"add=bad"]), headers=OWN).status_code == 413  # chunked
    for verb in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert client.request(verb, "/e/e1").status_code == 405
    assert store.all_tags() == []
    assert "access-control-allow-origin" not in client.get("/").headers


def test_the_token(store: Store) -> None:
    token = "a-token-of-good-length"
    client = lab(store, token=token)
    for path in ("/", "/static/lab.css", "/e/e1", "/nothing", "/?token=wrong", "/?token="):
        answer = client.get(path)
        assert answer.status_code == 401 and token not in answer.text
    welcome = client.get(f"/e/e1?token={token}&layer=a", follow_redirects=False)
    assert (welcome.status_code, welcome.headers["location"]) == (303, "/e/e1?layer=a")
    cookie = welcome.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/e/e1").status_code == 200  # with the cookie
    fresh = lab(store, token=token)
    assert fresh.get("/", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert fresh.get("/", headers={"cookie": 'microtome_token=x; a="b'}).status_code == 401
    assert fresh.post("/e/e1/tags", data={"add": "a"}, headers=OWN).status_code == 401
    away = fresh.get(f"//evil.example/?token={token}", follow_redirects=False)
    assert away.status_code == 303 and not away.headers["location"].startswith(("//", "http://evil", "/\\"))


def test_any_name_only_with_a_token(store: Store) -> None:
    anyone = lab(store, hosts=("*",), token="a-token-of-good-length")
    assert anyone.get("/", headers={"host": "lab.example"}).status_code == 401
    assert lab(store, hosts=("*",)).get("/", headers={"host": "lab.example"}).status_code == 421


def test_listening(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="MT172 others can reach"):
        listen("0.0.0.0", 0, "")
    with pytest.raises(UsageError, match="MT172 a token has at least 16"):
        listen("127.0.0.1", 0, "short")
    with listen("127.0.0.1", 0, "") as first:
        port = first.getsockname()[1]
        assert address(first, "127.0.0.1") == f"http://127.0.0.1:{port}/"
        assert address(first, "::1", "a&b=c d") == f"http://[::1]:{port}/?token=a%26b%3Dc+d"
        assert address(first, "0.0.0.0", "t" * 16) == f"http://127.0.0.1:{port}/?token={'t' * 16}"
        with pytest.raises(UsageError, match=r"MT173 .*in use.*--port 0"):
            listen("127.0.0.1", port, "")
    with pytest.raises(UsageError, match="MT173"):
        listen("127.0.0.1", 99999, "")
    with pytest.raises(UsageError, match="MT172"):
        listen("example.com", 0, "")


def test_no_address_leads_out(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("the secret")
    client = lab(store)
    outs = (
        "/static/../secret.txt", "/static/..%2fsecret.txt", "/static/%2e%2e/%2e%2e/secret.txt", "/static//etc/passwd",
        "/static/..\\secret.txt", "/e/..%2f..%2fsecret.txt", "/e/../secret.txt", "/e/e1/f/../../../secret.txt",
        "/e/e1/f/..%2f..%2f..%2fsecret", "/e/e1/f//etc/passwd", "/e/e1/f/%00", "/e/%00/layers", "/atlas/..%2f..%2fx",
        "/e/e1/examples/..%2f17", "/e/e1/examples/-1", "/e/e1/examples/99999999999999999999", "/e/e1/examples/1e3",
        "/secret.txt", "/static/lab.css/../../secret.txt", "/e/e1/f/reliability", "/static/",
    )  # fmt: skip
    for path in outs:
        answer = client.get(path)
        assert answer.status_code in (400, 404) or "secret" not in answer.url.path, (path, answer.status_code)
        assert "the secret" not in answer.text and "root:" not in answer.text
        assert "content-security-policy" in answer.headers


# --- what a store may hold ----------------------------------------------------------------------------


def test_nothing_that_is_stored_can_run(tmp_path: Path) -> None:
    arrays = answered(0)
    evil = Finding(
        instrument=f"evil/{EVIL}", headline=EVIL, question=EVIL, summary=EVIL, how_to_read=EVIL,
        quantities={EVIL: Quantity(value=1, unit=EVIL, how=EVIL)},
        tables={
            EVIL: Table(columns=("layer", "units", EVIL), rows=((EVIL, 3, EVIL), ("fc", 3, 2)), caption=EVIL),
            "mistakes": Table(columns=("true", "predicted", "count"), rows=((EVIL, EVIL, 2),)),
            "worst": Table(columns=("example", "label", "answer"), rows=((EVIL, EVIL, 1),)),
            "weights": Table(columns=("weights", "count", "prunable"), rows=((f"{EVIL}.weight", 3, 0.5),)),
        },
        figures={
            EVIL: Figure(title=EVIL, caption=EVIL, spec={"data": {"values": [{EVIL: EVIL}]}, "mark": "bar"}),
            "drawing": Figure(title=EVIL, spec={"drawing": {"size": [9, 9], "alternative": EVIL, "shapes": [
                {"box": [1, 1, 2, 2, 0], "is": "linear", "tip": f"{EVIL}; x", "of": EVIL}]}}),
            "pictures": Figure(title=EVIL, spec={"data": {"values": [
                {"row": EVIL, "column": EVIL, "image": "data:image/png;base64,\"><script>alert(1)</script>"}]}}),
        },
        arrays={**arrays, f"x/{EVIL}": np.ones(4)}, caveats=(EVIL,), options={EVIL: EVIL}, grade="alarm",
        papers=(EVIL,),
    )  # fmt: skip
    exam = examination(findings={evil.instrument: evil}, command=EVIL, plan={EVIL: [EVIL, {EVIL: EVIL}]})
    exam.subject |= {"name": EVIL, EVIL: EVIL, "inferred": [EVIL]}
    exam.calibration = {evil.instrument: [{"specimen": EVIL, EVIL: EVIL, "passed": False}]}
    from urllib.parse import quote

    with open_store(tmp_path) as store:
        store.save(exam)
        store.save(examination("e2"))
        client = lab(store)
        name = quote(evil.instrument, safe="/")
        paths = (
            "/", f"/?words={quote(EVIL)}&subject={quote(EVIL)}&tag={quote(EVIL)}", "/e/e1", f"/e/e1/f/{name}",
            f"/e/e1/f/{name}?bare=1", "/e/e1/layers", f"/e/e1/layers?layer={quote(EVIL)}", "/e/e1/examples",
            f"/e/e1/examples?sort={quote(EVIL)}&label={quote(EVIL)}", "/e/e1/examples/17", "/compare?of=e1&of=e2",
            f"/compare?of={quote(EVIL)}", "/compare?of=e1", f"/e/{quote(EVIL, safe='')}", f"/e/e1/f/{quote(EVIL)}",
            f"/e/e1/examples/{quote(EVIL, safe='')}", f"/atlas/{quote(EVIL, safe='')}",
        )  # fmt: skip
        for path in paths:
            answer = client.get(path)
            assert answer.status_code in (200, 404), (path, answer.status_code)
            page = Page(answer.text)
            assert page.handlers == [] and page.stack == [], path
            assert all(s.startswith("/static/") or s == "application/json" for s in page.scripts), path
            assert "x" not in page.images and "62773913" not in page.words, path


def test_damage_is_said_and_the_rest_is_shown(store: Store, tmp_path: Path) -> None:
    client = lab(store)
    array_path(store.location.arrays, "e1", "reliability/accuracy").write_bytes(b"\xff" * 100)
    array_path(store.location.arrays, "e1", "explain/gradient").unlink()
    with sqlite3.connect(tmp_path / "microtome.db") as raw:
        raw.execute(
            "UPDATE findings SET body = '{\"headline\": 3}' WHERE instrument = 'compress/cost' AND exam_id = 'e1'"
        )
        huge = '{"instrument":"represent/linear_cka","arrays":{"x":{"dtype":"float64","shape":[1000000000000,9]}}}'
        raw.execute("UPDATE findings SET body = ? WHERE instrument = 'represent/linear_cka'", (huge,))
        odd = '{"instrument":"represent/feature_rank","arrays":{"x":{"dtype":"nonsense","shape":[-1]}}}'
        raw.execute("UPDATE findings SET body = ? WHERE instrument = 'represent/feature_rank'", (odd,))
        raw.execute("UPDATE examinations SET body = 'not json' WHERE id = 'e2'")
    raw.close()
    page = client.get("/e/e1")
    assert page.status_code == 200 and "compress/cost" in page.text and "is damaged" in page.text
    assert "Confidences are off by 0.31." in page.text
    assert client.get("/e/e1/f/compress/cost?bare=1").status_code == 500
    for name in ("reliability/accuracy", "explain/gradient", "represent/linear_cka"):
        part = client.get(f"/e/e1/f/{name}?bare=1")
        assert part.status_code == 200 and "MT136" in part.text, name
    for path in ("/e/e1/layers", "/e/e1/examples", "/e/e1/examples/17", "/"):
        assert client.get(path).status_code == 200, path
    array_path(store.location.arrays, "e1", "reliability/examples").write_bytes(b"\xff" * 100)
    fresh = lab(store)  # the arrays were in memory
    told = fresh.get("/e/e1/examples").text
    assert "MT136" in told and "--only reliability/examples" not in told  # it was kept, and is damaged
    assert client.get("/e/e2").status_code == 500 and "MT132" in client.get("/e/e2").text
    answer = client.get("/compare?of=e1&of=e2")
    assert answer.status_code == 500 and "MT132" in answer.text


def test_arrays_that_no_page_is_worth_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.web import lab as lab_module

    client = lab(store)
    monkeypatch.setattr(lab_module, "MOST_ARRAYS", 10_000)
    monkeypatch.setattr(type(store), "arrays_of", lambda *given: pytest.fail("they were read"))
    part = client.get("/e/e1/f/reliability/examples?bare=1")
    assert part.status_code == 200 and "MT519" in part.text and "load_examination" in part.text


def test_a_store_made_elsewhere_leads_to_no_other_folder(store: Store, tmp_path: Path) -> None:
    """Ids are names of folders; one that leads out of the store is not followed, and the rest is shown."""
    outside = tmp_path.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "progress.json").write_text('{"instruments": 777}')
    with sqlite3.connect(tmp_path / "microtome.db") as raw:
        for out in ("../../outside", str(outside), "a\x00b", 'e"\r\nx-evil: 1', ".."):
            raw.execute(
                "INSERT INTO examinations SELECT ?, created, subject, 'running', seconds, body "
                "FROM examinations WHERE id = 'e1'",
                (out,),
            )
        raw.execute("UPDATE examinations SET body = '[1]' WHERE id = 'e2'")
    raw.close()
    from urllib.parse import quote

    client = lab(store)
    for path in ("/", "/running?bare=1", "/compare", "/compare?groups=1"):
        answer = client.get(path)
        assert answer.status_code == 200 and "777" not in answer.text, path
        assert Page(answer.text).stack == []
    for out in ("../../outside", str(outside), 'e"\r\nx-evil: 1'):
        for rest in ("", "/state", "/report.html", "/layers"):
            answer = client.get(f"/e/{quote(out, safe='')}{rest}")
            assert answer.status_code == 404 and "x-evil" not in answer.headers, (out, rest)
        assert "There is no examination" in client.get(f"/compare?of=e1&of={quote(out, safe='')}").text
    assert client.get("/e/e2").status_code == 500 and "MT132" in client.get("/e/e2").text


def test_findings_that_contradict_themselves_do_not_stop_a_page(tmp_path: Path) -> None:
    """Arrays of another length, ids twice, neighbours nobody knows: a stored finding may hold anything."""
    arrays = answered(0) | {
        "neighbours": np.full((COUNT, 5), 10**12),
        "nearest otherwise": np.full(COUNT, -5),
        "probabilities": np.full((COUNT, 3), np.nan, np.float32),
        "loss": np.where(np.arange(COUNT) % 2, np.nan, np.inf).astype(np.float32),
        "thumbnails": np.zeros((COUNT, 0, 6, 1), np.uint8),
        "explained": np.array([17, 17]),
        "for the answer": np.full((2, 6, 6), np.nan, np.float32),
        "change that mends": np.array([np.inf, np.nan], np.float32),
    }
    odd = {
        "a/examples": Finding(instrument="a/examples", headline="none", arrays=arrays),
        "b/short": Finding(
            instrument="b/short", arrays={"rows": np.array([17, 17, 400]), "samples": np.ones(2)}
        ),
        "c/empty": Finding(
            instrument="c/empty", arrays={"rows": np.zeros(0, np.int64), "samples": np.zeros(0)}
        ),
        "d/square": Finding(
            instrument="d/square", arrays={"rows": np.ones((2, 2), np.int64), "maps": np.ones((2, 3))}
        ),
        "e/text": Finding(
            instrument="e/text",
            headline="gone",
            arrays={
                "rows": np.array([17]),
                "maps": np.ones((1, 4), np.float32),
                "witness": np.ones((1, 1, 3, 3)),
            },
        ),
    }
    with open_store(tmp_path) as store:
        store.save(examination(findings=odd))
        client = lab(store)
        for path in (
            "",
            "/layers",
            "/examples",
            "/examples?sort=loss",
            "/examples/17",
            "/examples/0",
            "/examples/worst",
        ):
            answer = client.get("/e/e1" + path)
            assert answer.status_code == 200, (path, answer.text[-300:])
        assert client.get("/e/e1/examples/cells").json()["total"] == COUNT


@pytest.mark.parametrize(
    "kind", ["labels", "answers", "classes", "probabilities", "neighbours", "graphs", "tokens"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e300])
def test_arrays_of_another_kind_do_not_stop_a_page(tmp_path: Path, kind: str, value: float) -> None:
    """Whole numbers are expected; a store made elsewhere may hold any."""
    made = findings()
    a = made["reliability/examples"].arrays
    a[kind] = np.full(a[kind].shape if kind in a else (COUNT, 12), value)
    boxes = [[1, 2], {"box": [1, 1, 2, 2, 0], "is": [], "tip": 3}]
    for name, shapes in {"odd": boxes, "none": None, "number": 7}.items():
        spec = {"drawing": {"size": [9, 9], "shapes": shapes}}
        made["architect/wiring"].figures[name] = Figure(title="odd", spec=spec)
    with open_store(tmp_path) as store:
        store.save(examination(findings=made))
        client = lab(store)
        for path in (
            "/layers?layer=relu",
            "/examples",
            "/examples/17",
            "/report.html",
            "/f/architect/wiring",
        ):
            assert client.get("/e/e1" + path).status_code == 200, path


def test_large_findings_stay_bounded(tmp_path: Path) -> None:
    rows = tuple((f"layer{i}", i, 0.5) for i in range(50_000))
    spec = {"mark": "point", "data": {"values": [{"x": i, "y": "z" * 30} for i in range(90_000)]}}
    large = Finding(
        instrument="a/large",
        headline="x",
        quantities={"x": Quantity(value=1)},
        tables={"t": Table(columns=("thing", "a", "b"), rows=rows)},
        figures={"f": Figure(title="Large", spec=spec)},
    )
    with open_store(tmp_path) as store:
        store.save(examination(findings={"a/large": large}))
        part = lab(store).get("/e/e1/f/a/large?bare=1")
        assert part.status_code == 200 and len(part.content) < 1_000_000
        assert "300 of 50000 rows" in part.text and "Too large to draw here (90000 rows)" in part.text


# --- layers and examples ------------------------------------------------------------------------------


def test_layers_are_brought_together() -> None:
    exam = examination()
    found = {layer.name: layer for layer in layers(exam)}
    assert list(found) == ["stem", "relu", "fc", "relu#2", "head"]
    assert found["fc"].values == {"parameters": 800, "operations": 300, "prunable": 0.9}
    assert found["relu#2"].values["CKA to the layer before"] == 0.99
    assert [s["finding"] for s in found["fc"].sections] == ["compress/cost", "compress/magnitude_pruning"]
    worst = wasteful(exam)
    assert [w["layer"] for w in worst] == ["fc", "head", "stem"]
    assert abs(worst[0]["spared"] - 0.72) < 1e-9
    assert "relu#2 uses 4.0 of 64 directions" in worst[0]["said"]  # what follows a layer speaks for it


def test_weights_of_which_nothing_is_known_speak_for_no_other_layer() -> None:
    """What follows a layer speaks for it, until there are weights again; and of many few are named."""
    made = findings()
    cost = made["compress/cost"].tables["layers"]
    rows = [
        *cost.rows[:3],
        *((f"n{i}", "norm", 4, 0) for i in range(4)),
        ("other", "linear", 50, 5),
        *cost.rows[3:],
    ]
    made["compress/cost"].tables["layers"] = msgspec.structs.replace(cost, rows=tuple(rows))
    ranks = Table(
        columns=("layer", "units", "effective"),
        rows=(*((f"n{i}", 64, 1.0 + i) for i in range(4)), ("relu#2", 64, 4.0)),
    )
    made["represent/feature_rank"].tables["layers"] = ranks
    said = next(w["said"] for w in wasteful(examination(findings=made)) if w["layer"] == "fc")
    assert "n0 uses 1.0" in said and "n1 uses 2.0" in said and "n2" not in said and "relu#2" not in said


def test_long_names_of_layers_may_be_broken(tmp_path: Path) -> None:
    from microtome.web.render import breaks

    assert str(breaks("a.b_c<i>.d")) == "a.<wbr>b_<wbr>c&lt;i&gt;.<wbr>d"
    assert str(breaks(EVIL)).count("<") == str(breaks(EVIL)).count("<wbr>")


def test_a_layer_and_its_box(store: Store) -> None:
    page = lab(store).get("/e/e1/layers?layer=relu%232").text
    assert re.findall(r'<rect [^>]*data-layer="([^"]+)"', page) == ["stem", "relu", "relu#2"]
    part = lab(store).get("/e/e1/layers?layer=relu%232&bare=1").text
    assert "64 of them" in part and "1 at zero" in part and "CKA" in part
    assert "No finding speaks of a layer" in lab(store).get("/e/e1/layers?layer=none&bare=1").text


def test_what_excites_a_unit(store: Store) -> None:
    client = lab(store)
    page = client.get("/e/e1/layers?layer=relu").text
    assert "Unit 7 of relu" in page  # the unit that is excited most comes without being asked for
    assert re.findall(r'data-unit="(\d)" class="silent"', page) == ["3"]
    part = client.get("/e/e1/layers/unit?layer=relu&unit=2&bare=1").text
    assert re.findall(r'href="/e/e1/examples/(\d+)"', part) == [
        str(i) for i in (20, 21, 22, 23, 208, 209, 210, 211)
    ]
    assert ">24</span>" in part and part.count("<img") == 8
    lost = client.get("/e/e1/layers/unit?layer=relu&unit=7&bare=1").text
    assert "examples/9999" not in lost and "Of 1 of them no more is kept" in lost
    assert "nothing here brings it above 0" in client.get("/e/e1/layers/unit?layer=relu&unit=3&bare=1").text
    assert "Unit 7 of relu" in client.get("/e/e1/layers/unit?layer=relu&unit=99999&bare=1").text
    assert "Unit 0 of relu" in client.get("/e/e1/layers/unit?layer=relu&unit=%3Cx&bare=1").text
    assert client.get("/e/e1/layers/unit?layer=fc&bare=1").status_code == 404
    assert client.get("/e/e1/layers/unit?layer=relu&unit=2", follow_redirects=False).status_code == 307
    led = client.get("/e/e1/layers?layer=relu%232").text  # another layer's are kept
    assert "is kept where they are read" in led and 'href="?layer=relu" data-layer="relu">relu</a>.' in led
    without = {k: f for k, f in findings().items() if k != "represent/activation_statistics"}
    store.save(examination("e5", findings=without))
    assert "keeps those that excite each" in client.get("/e/e5/layers?layer=relu%232").text


def test_units_that_contradict_themselves_are_left_out() -> None:
    exam = examination()
    good = {"most exciting/a": np.zeros((2, 3), int), "most excitement/a": np.zeros((2, 3))}
    name = "represent/activation_statistics"
    found = exciting(exam, "a", {name: good})
    assert found is not None and found.units == 2 and found.silent == [True, True] and found.first == 0
    odd = [{"most excitement/a": np.zeros((2, 2))}, {"most exciting/a": np.zeros((2, 3))}]
    odd += [{"most exciting/a": np.zeros(3, int), "most excitement/a": np.zeros(3)}]
    odd += [{"most exciting/a": np.zeros((0, 3), int), "most excitement/a": np.zeros((0, 3))}]
    assert [exciting(exam, "a", {name: good | each}) for each in odd] == [None] * 4
    assert exciting(exam, "a", {}) is None


def test_the_grid_is_in_order(store: Store) -> None:
    client, a = lab(store), answered(0)
    loss = client.get("/e/e1/examples/cells").json()
    assert loss["total"] == COUNT and [c["id"] for c in loss["cells"]] == np.argsort(-a["loss"])[:60].tolist()
    second = client.get("/e/e1/examples/cells?from=60").json()
    assert [c["id"] for c in second["cells"]] == np.argsort(-a["loss"])[60:120].tolist()
    margin = client.get("/e/e1/examples/cells?sort=margin").json()  # small margins first, without being asked
    assert [c["id"] for c in margin["cells"][:5]] == np.argsort(a["margin"])[:5].tolist()
    wrong = client.get("/e/e1/examples/cells?wrong=1&label=2").json()
    expected = np.flatnonzero((a["labels"] != a["answers"]) & (a["labels"] == 2))
    assert {c["id"] for c in wrong["cells"]} == set(expected.tolist()) and wrong["total"] == len(expected)
    gain = client.get("/e/e1/examples/cells?sort=gradient: gain").json()
    assert [c["id"] for c in gain["cells"][:2]] == [17, 40] and gain["cells"][2]["value"] == "–"
    for odd in ("?from=-5", "?from=x", "?from=99999999", "?sort=%00", "?down=7", "?label=1e9"):
        assert client.get(f"/e/e1/examples/cells{odd}").status_code == 200
    assert client.get("/e/none/examples/cells").json()["error"].startswith("MT135")


def test_what_fills_a_text_up_is_said_once() -> None:
    words = ["a", "film", "[PAD]", "[PAD]", "[PAD]"]
    assert single.prose(words) == "a film [PAD] ×3" and single.prose(["ha", "ha"]) == "ha ha"
    assert single.prose([]) == "" and single.prose(["x"] * 4) == "x ×4"
    shown = str(single.parts(np.array([1.0, 0.5, 0.1, 0.1, 0.05, 0.0, 0.0]), words, "said"))
    assert re.findall(r'title="([^"]+)">([^<]*)<', shown) == [
        ("+1.00", "a"), ("+0.50", "film"), ("+0.25", "[PAD] ×3"),
    ]  # fmt: skip


def test_the_command_for_a_map_goes_on_from_the_one_that_examined(store: Store) -> None:
    """It keeps the network and the data, leaves the report that was written alone, and names methods that apply."""
    kept = findings()
    kept["explain/gradient"].options["examples"] = []
    store.save(
        examination(
            "m1", findings=kept, command="microtome examine 'my nets:build' --report 'a b.html' --seed 3"
        )
    )
    words = html.unescape(lab(store).get("/e/m1/examples/3").text)
    asked = "microtome examine 'my nets:build' --seed 3 \\\n  --only explain/gradient "
    asked += "--option 'explain/gradient.examples=[3]'"
    assert asked in words and "a b.html" not in words.split("<main>")[1]
    for command in ("", "rm -rf 'x", "curl evil | sh"):
        store.save(examination("m2", findings=kept, command=command))
        shown = html.unescape(lab(store).get("/e/m2/examples/3").text)
        assert "microtome examine ... \\\n  --only explain/integrated_gradients" in shown
    kept["explain/integrated_gradients"] = Finding(
        instrument="explain/integrated_gradients", status="refused", reason="a graph has no pixels"
    )
    del kept["explain/gradient"]
    store.save(examination("m3", findings=kept))
    assert "does not apply: a graph has no pixels" in lab(store).get("/e/m3/examples/3").text


def test_an_example_is_opened_by_its_number(store: Store) -> None:
    """Without any script too."""
    client = lab(store)
    for page in ("/e/e1", "/e/e1/examples", "/e/e1/examples/17"):
        text = client.get(page).text
        assert text.count('name="row"') == 1 and len(Page(text).ids) == len(set(Page(text).ids))
    moved = client.get("/e/e1/examples?sort=margin&row=17&page=3", follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (307, "/e/e1/examples/17?sort=margin")
    for odd in ("//evil.example", "../../x", "%0d%0ax: 1", "17 "):
        answer = client.get(f"/e/e1/examples?row={odd}", follow_redirects=False)
        assert re.fullmatch(r"/e/e1/examples/[\w.%-]+", answer.headers["location"]), odd
    assert client.get("/e/e1/examples?row=x").status_code == 404


def test_a_wrong_address_leads_back(store: Store) -> None:
    client = lab(store)
    lost = client.get("/e/e1/examples/99999")
    assert lost.status_code == 404 and 'href="/e/e1/examples"' in lost.text
    store.save(examination("20261126-145653-d955"))
    assert client.get("/e/20261126").status_code == 200  # the beginning of an id is enough
    near = client.get("/e/20261126-145653-d9x5")
    assert near.status_code == 404 and "20261126-145653-d955" in near.text


def test_what_is_offered_for_comparison_is_of_the_same_kind(store: Store) -> None:
    other = examination("r1", "2026-11-21T12:00:00Z")
    other.subject |= {"task": "regression", "name": "another task"}
    store.save(other)
    for i in range(4):
        store.save(examination(f"n{i}", f"2026-11-2{i + 3}T10:00:00Z"))
    page = lab(store).get("/e/e1").text
    offered = re.findall(r'href="/compare\?by=time&amp;of=e1&amp;of=(\w+)"', page)
    assert offered == ["e2", "n0", "n1"]  # the next in time, none of another task


def test_mistakes_are_counted_beyond_the_table() -> None:
    from microtome.report.answers import answers

    made = findings()
    made["reliability/accuracy"] = msgspec.structs.replace(
        made["reliability/accuracy"],
        quantities={"accuracy": Quantity(value=0.9)},
        coverage=Coverage(rows=COUNT, rows_total=COUNT),
    )
    (card,) = [a for a in answers(examination(findings=made)) if a["question"].startswith("Which class")]
    assert card["said"] == "30 mistakes: 2 taken for 1 (9×), 0 taken for 1 (4×), and 17 others"


def test_where_examples_are_refused_the_reason_stands(tmp_path: Path) -> None:
    reason = "a regression has no classes"
    with open_store(tmp_path) as store:
        kept = findings()
        kept["reliability/examples"] = Finding(
            instrument="reliability/examples", status="refused", reason=reason
        )
        store.save(examination(findings=kept))  # other findings speak of single examples
        store.save(examination("e2", findings={"reliability/examples": kept["reliability/examples"]}))
        for exam in ("e1", "e2"):
            page = Page(lab(store).get(f"/e/{exam}/examples").text)
            assert reason in page.words and "--only" not in page.words and page.stack == []


def test_numbers_of_which_more_is_better_begin_with_the_least(store: Store) -> None:
    client = lab(store)
    right = findings()["reliability/accuracy"].arrays["samples"]
    first = client.get("/e/e1/examples/cells?sort=accuracy").json()["cells"]
    wrong = np.flatnonzero(right == 0)
    assert [c["id"] for c in first[: len(wrong)]] == wrong.tolist()


def test_examples_without_their_answers_are_still_listed(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        kept = {k: f for k, f in findings().items() if k != "reliability/examples"}
        store.save(examination(findings=kept))
        client = lab(store)
        page = client.get("/e/e1/examples?sort=gradient: gain").text
        assert "--only reliability/examples" in page
        assert "No map was made" not in client.get("/e/e1/examples/17").text
        assert "There are maps of" in client.get("/e/e1/examples/3").text


def test_the_smallest_change_that_changes_the_answer(store: Store) -> None:
    page = Page(lab(store).get("/e/e1/examples/17").text)
    words = " ".join(page.words.split())
    assert "A change of length 0.25 is answered 2 instead of" in words
    assert "with another answer, 20, is 5 away, so this is 5% of that way" in words
    assert len(page.images) >= 6 and "strongest" in words
    lone = " ".join(Page(lab(store).get("/e/e1/examples/7").text).words.split())
    assert "A change of length 0.5 is answered 1" in lone and "so this is" not in lone
    assert "smallest change" not in lab(store).get("/e/e1/examples/8").text


def test_a_change_of_a_vector_and_changes_that_contradict_themselves() -> None:
    exam, name = examination(), "explain/nearest_counterfactual"
    found = single.Records(np.arange(2), {"inputs": np.array([[0.5, 1.0], [3.0, 4.0]], np.float32)})
    good = {"rows": np.array([1]), "samples": np.array([2.0]), "answers then": np.array([1])}
    shown = single.counterfactual(found, exam, {name: good | {"changed": np.array([[3.0, 2.0]])}}, 1)
    assert shown is not None and shown["numbers"] == [(1, "4", "2")] and shown["distance"] == "2"
    for odd in (
        {"changed": np.zeros((1, 5))},
        {"changed": np.zeros((1, 2, 2, 1))},
        {"changed": np.zeros((0, 2))},
    ):
        bare = single.counterfactual(found, exam, {name: good | odd}, 1)
        assert bare is not None and bare["numbers"] == [] and bare["image"] == ""
    for wrong in ({"samples": np.zeros(3)}, {"answers then": np.zeros(1)}, {"rows": np.zeros((1, 1), int)}):
        assert single.counterfactual(found, exam, {name: good | wrong}, 1) is None


def test_text_examples_show_their_words() -> None:
    found = single.Records(np.arange(2), {"inputs": np.array([[0.5, -1.25], [3.0, 4.0]])})
    assert single.tokens(found, 0) == ["0.5", "-1.25"]
    words = str(single.parts(np.array([1.0, -1.0, 0.0]), ["<b>", "is", "fine"], "said"))
    assert re.findall(r'class="(w\d+)" title="([^"]+)">([^<]*)<', words) == [
        ("w10", "+1.00", "&lt;b&gt;"), ("w0", "-1.00", "is"), ("w5", "+0.00", "fine"),
    ]  # fmt: skip
    assert "most for: &lt;b&gt; (+1.00); most against: is (-1.00)." in words  # the colours in words
    assert "Nothing speaks either way" in str(single.parts(np.zeros(2), ["a", "b"], "said"))


# --- comparisons --------------------------------------------------------------------------------------


def test_two_side_by_side(store: Store) -> None:
    page = " ".join(Page(lab(store).get("/compare?of=e1&of=e2").text).words.split())
    first, second = (
        findings(seed, acc)["reliability/accuracy"].arrays["samples"] for seed, acc in ((0, 0.9), (1, 0.6))
    )
    fell, rose = int((first > second).sum()), int((first < second).sum())
    assert f"{fell} right in A, wrong in B" in page and f"{rose} wrong in A, right in B" in page
    assert "Cannot be said" in page
    same = " ".join(Page(lab(store).get("/compare?of=e1&of=e1").text).words.split())
    assert "Choose" in same  # one twice is one
    missing = lab(store).get("/compare?of=e1&of=nobody")
    assert missing.status_code == 200 and "There is no examination “nobody”" in missing.text


def test_marked_in_a_list_the_older_comes_first(store: Store) -> None:
    """The list is newest first; "before" must not be what came after."""
    client = lab(store)
    moved = client.get("/compare?by=time&of=e2&of=nobody&of=e1", follow_redirects=False)
    assert moved.headers["location"] == "/compare?of=e1&of=e2&of=nobody"
    assert 'name="by" value="time"' in client.get("/").text
    words = Page(client.get("/compare?of=e1&of=e2").text).words
    assert "A, before" in words and "B, after" in words
    assert "before" not in Page(client.get("/compare?of=e2&of=e1").text).words.split("Larger")[0]


def test_two_groups_of_runs(store: Store) -> None:
    from microtome.group_comparison import compare_groups

    for i in range(6):
        exam = examination(f"r{i}", f"2026-11-23T10:0{i}:00Z", findings=findings(i, 0.9 if i < 3 else 0.6))
        store.save(exam)
        store.tag(f"r{i}", "plain" if i < 3 else "made other")
    client = lab(store)
    asked = "/compare?groups=1&a=r0,r1,r2&b=r3,r4,r5"
    page = Page(client.get(asked).text)
    assert page.stack == [] and page.handlers == []
    words = " ".join(page.words.split())
    found = compare_groups(*([store.load(f"r{i}") for i in side] for side in ((0, 1, 2), (3, 4, 5))))
    real = found.larger_than_noise()
    assert real and f"Larger than the variation between runs {len(real)}" in words
    assert "Welch's t over 3 and 3 runs" in words and f"corrected for {found.tests} tests" in words
    pairs = client.get(asked + "&paired=1").text
    assert "paired t over 3 pairs of runs" in html.unescape(pairs) and "Take them as two samples" in pairs
    # What the list sends, and whole tags, lead to the same address, which can be kept.
    for sent in (
        "g.r0=a&g.r1=a&g.r2=a&g.r3=b&g.r4=b&g.r5=b&g.e1=",
        "a_tag=plain&b_tag=made%20other",
    ):
        answer = client.get(f"/compare?groups=1&{sent}", follow_redirects=False)
        kept = sorted(answer.headers["location"].split("?")[1].split("&"))
        assert kept == ["a=r0", "a=r1", "a=r2", "b=r3", "b=r4", "b=r5", "groups=1"]


def test_groups_that_are_none(store: Store, tmp_path: Path) -> None:
    client = lab(store)
    for asked, said in {
        "a=e1&b=e2": "groups of 1 and 1 runs", "a=e1&a=e2": "Group B is empty", "a=e1,e2&b=e2": "cannot be in both",
        "a=nobody&b=e1": "There is no examination “nobody”", "": "Two runs or more on each side",
        "a=e1&b=%3Cscript%3E": "&lt;script&gt;", "words=nothing-like-it": "There is no examination that fits",
    }.items():  # fmt: skip
        answer = client.get(f"/compare?groups=1&{asked}")
        assert answer.status_code == 200 and said in answer.text, asked
        assert Page(answer.text).stack == []
    checked = re.findall(r'name="g\.(e\d)" value="(\w?)" checked', client.get("/compare?groups=1&a=e1").text)
    assert checked == [("e1", "a"), ("e2", "")]
    store.save(examination("e3", findings=findings(2)))
    uneven = client.get("/compare?groups=1&a=e1&b=e2,e3&paired=1").text
    assert "groups of 1 and 2 runs" in uneven
    with open_store(tmp_path / "empty") as empty:
        assert "There is no examination." in lab(empty).get("/compare?groups=1").text


def test_a_course_of_a_number_nobody_measured_is_left_out(store: Store) -> None:
    exam = trained()
    del exam.findings["reliability/accuracy"].quantities["accuracy"]
    store.save(exam)
    assert lab(store).get("/compare?of=t1").status_code == 200


def test_many_and_along_training(store: Store) -> None:
    store.save(examination("e3", findings=findings(2, 0.91)))
    store.save(trained())
    client = lab(store)
    page = client.get("/compare?of=e1&of=e2&of=e3").text
    row = re.search(
        r'<tr data-item data-texts="([^"]*)" data-changes="([^"]*)" class="real"><th[^>]*>.*?accuracy', page
    )
    assert row is not None
    assert json.loads(row[2].replace("&#34;", '"')) == ["same", "worse", "same"]
    # A column each, and a word only where it is more than noise; the course rings the same.
    cells = re.findall(
        r'<td class="n">([^<]+)(?:<br>.*?badge (\w+)")?', page.split(row[0])[1].split("</tr>")[0]
    )
    assert [word for _, word in cells] == ["", "alarm", ""]
    assert page.split(row[0])[1].split("</tr>")[0].count('class="ring"') == 1
    assert "data-scrub" not in page
    for i in range(3):
        store.save(examination(f"s{i}", findings=findings(i, 0.9)))
    scrubbed = client.get("/compare?of=e1&of=e2&of=e3&of=s0&of=s1&of=s2").text
    assert "data-scrub" in scrubbed and Page(scrubbed).stack == []
    course = client.get("/compare?of=t1").text
    assert '["step 0", "step 100", "step 200", "step 800"]' in course
    (texts,) = re.findall(r'data-texts="([^"]*)"', course)
    assert json.loads(html.unescape(texts)) == ["0.1", "0.2", "0.3", "0.9"]
    assert client.get("/compare?" + "&".join(f"of=x{i}" for i in range(500))).status_code == 200


# --- the command --------------------------------------------------------------------------------------


def test_the_command_serves_and_ends(tmp_path: Path) -> None:
    import signal
    import urllib.request

    with open_store(tmp_path) as store:
        store.save(examination())
    command = [
        sys.executable,
        "-m",
        "microtome",
        "view",
        "--store",
        str(tmp_path),
        "--port",
        "0",
        "--no-open",
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        where = running.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", where)
        for _ in range(100):
            try:
                with urllib.request.urlopen(where, timeout=5) as answer:
                    assert "a network" in answer.read().decode()
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("the lab did not answer")
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=10) in (0, 130)
    finally:
        running.kill()
        running.communicate()


def test_the_lab_loads_no_torch() -> None:
    code = "import sys; import microtome.web, microtome.cli.view; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
