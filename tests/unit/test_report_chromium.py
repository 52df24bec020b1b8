# SPDX-License-Identifier: GPL-2.0-only
"""The HTML report in a real browser: layout, contrast, headings, links, print."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from policy_events import failing_name, full_policy
from sample_events import ATTACHERS, NEW, OLD, SampleRun, full_run, passing_run, write
from test_report_model import model_of

from harness.report.html import render
from harness.report.model import read

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

DARK, LIGHT = 0, 1
AA = 4.5

#: Reads the report inside an iframe, because a window of the browser itself
#: cannot be as narrow as a phone.  The report's own page stays without script.
PROBE = r"""
function rgb(text) {
  const n = (text.match(/[\d.]+/g) || []).map(Number);
  return n.length < 3 || n[3] === 0 ? null : n.slice(0, 3);
}
function luminance(c) {
  const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function ground(win, node) {
  for (let e = node; e; e = e.parentElement) {
    const c = rgb(win.getComputedStyle(e).backgroundColor);
    if (c) return c;
  }
  return [255, 255, 255];
}
function apart(spans) {
  const boxes = spans.map(s => s.getBoundingClientRect());
  return boxes.every((b, n) => n === 0 || boxes[n - 1].right <= b.left);
}
function probe(frame) {
  const win = frame.contentWindow, doc = frame.contentDocument, root = doc.documentElement;
  const all = s => [...doc.querySelectorAll(s)];
  const folded = all("details:not([open])").length;
  const targets = ["#matrix", "#triples"].flatMap(s => all(s + " table.mx a")
    .map(a => doc.getElementById(a.getAttribute("href").slice(1)))
    .filter(e => !e.checkVisibility()).slice(0, 1));
  const revealed = targets.map(e => {
    win.location.hash = e.id;
    return e.querySelector("table.tl").checkVisibility();
  });
  all("details").forEach(d => d.open = true);
  const poor = [], seen = new Set();
  let texts = 0;
  const walk = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT);
  for (let t; t = walk.nextNode();) {
    const e = t.parentElement;
    if (!t.data.trim() || !e.checkVisibility()) continue;
    texts++;
    const a = luminance(rgb(win.getComputedStyle(e).color)), b = luminance(ground(win, e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const what = e.tagName + "." + (e.getAttribute("class") || "");
    if (ratio < 4.5 && !seen.has(what)) { seen.add(what); poor.push([what, t.data, ratio]); }
  }
  const ids = all("[id]").map(e => e.id);
  return {
    scroll: root.scrollWidth, client: root.clientWidth, texts, poor, revealed,
    ground: luminance(ground(win, doc.body)),
    headings: all("h1,h2,h3,h4,h5,h6").map(h => +h.tagName[1]),
    matrices: all("#matrix table.mx").map(t => t.querySelectorAll("td").length),
    heads: all("#matrix table.mx").every(t => apart([...t.querySelectorAll("thead span")])),
    wide: all("table.mx, table.tl")
      .filter(t => t.offsetWidth > t.parentElement.clientWidth).length,
    tall: Math.max(0, ...all("#matrix table.mx").map(t => t.offsetHeight)),
    folded,
    resources: win.performance.getEntriesByType("resource").map(r => r.name),
    dead: all("a[href]").map(a => a.getAttribute("href"))
      .filter(h => h[0] !== "#" || !doc.getElementById(h.slice(1))),
    duplicates: ids.filter((id, n) => ids.indexOf(id) !== n),
    tables: all("table").filter(t => !(t.caption || t.getAttribute("aria-label"))
      || t.querySelector("th:not([scope])")).length,
    scripts: all("script").length, lang: root.lang, title: doc.title,
  };
}
"""


def run_chromium(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    # The page is our own, and in a container the sandbox cannot be set up.
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", *arguments,
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip


def examine(tmp_path: Path, page: str, width: int, scheme: int = LIGHT) -> dict[str, Any]:
    """What the probe finds in the page, shown ``width`` pixels wide."""
    frame = f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>'
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f"<!doctype html><meta charset=utf-8>{frame}<pre></pre><script>{PROBE}"
        "onload = () => { console.log('probe ran'); document.querySelector('pre').textContent ="
        " JSON.stringify(probe(document.querySelector('iframe'))); }</script>",
        encoding="utf-8",
    )
    done = run_chromium(
        tmp_path,
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=1400,1000",
        "--dump-dom",
        wrapper.as_uri(),
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(said) == 1, said  # and so an error of the page would be seen
    assert "probe ran" in said[0]
    match = re.search(r"</iframe><pre>(.*?)</pre>", done.stdout, re.S)
    assert match, done.stdout[-500:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


@pytest.fixture(scope="module")
def page() -> str:
    return render(model_of(full_run()))


def test_the_page_asks_nobody_for_anything(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<img|\son\w+=", page)
    assert set(re.findall(r'(?:href|src)="(.)', page)) == {"#"}
    assert "default-src 'none'" in page


def test_what_a_guest_says_is_escaped() -> None:
    events = full_run()
    evil = "<script>alert(1)</script>\x00\ud800"
    for event in events:
        for key in ("registry_text", "reason", "name", "text", "detail", "release", "cpu"):
            if key in event:
                event[key] = f"{evil}{event[key]}"
    text = render(model_of(events))
    text.encode("utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_cell_of_several_scenarios_leads_to_all_of_them() -> None:
    events = passing_run()
    for event in events:
        if event.get("matrix"):
            event["matrix"] = ["livepatch", "fentry"]
    text = render(model_of(events))
    (target,) = re.findall(r'<td><a class=t-\w+ href="#(.+?)"', text)
    listed = text[text.index(f" id={target}>") :].split("</details>")[0]
    assert listed.count("<span class=name>") == 9


def test_a_cell_of_several_leads_to_the_list_even_if_the_first_failed() -> None:
    events = SampleRun((NEW,), ("ops", "fexit"), {(NEW, "ops", "ops"): "body"}).end()
    for event in events:
        if event.get("matrix"):
            event["matrix"] = ["ops", "fexit"]
    text = render(model_of(events))
    (target,) = re.findall(r'<td><a class=t-\w+ href="#(.+?)"', text)
    listed = text[text.index(f" id={target}>") :].split("</details>")[0]
    assert listed.count("class=name") == 4


def test_five_kernels_with_two_hundred_scenarios_stay_small() -> None:
    attachers = (*ATTACHERS, "kprobe", "kprobe-post", "kretprobe", "function-graph", "fprobe")
    kernels = (OLD, NEW, "6.1.0-56-cloud-amd64", "7.2.12-cloud-amd64", "7.3.4-cloud-amd64")
    text = render(model_of(SampleRun(kernels, attachers).end()))
    assert text.count("class=sc") >= 5 * 197
    assert len(text.encode()) < 5_000_000


@needs_chromium
@pytest.mark.parametrize(
    ("width", "scheme"), [(1200, LIGHT), (1200, DARK), (390, LIGHT)], ids=("light", "dark", "phone")
)
def test_page_in_a_browser(tmp_path: Path, page: str, width: int, scheme: int) -> None:
    found = examine(tmp_path, page, width, scheme)
    assert found["client"] <= width
    assert found["scroll"] <= found["client"], "the page scrolls sideways"
    assert found["matrices"] == [len(ATTACHERS) ** 2] * 2
    assert found["heads"], "column heads lie over each other"
    assert found["wide"] == 0 or width < 1200
    assert (found["ground"] < 0.1) == (scheme == DARK)
    assert found["texts"] > 1000
    assert found["poor"] == []
    levels = found["headings"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert found["resources"] == []
    assert found["scripts"] == 0
    assert found["dead"] == []
    assert found["duplicates"] == []
    assert found["tables"] == 0
    assert found["lang"] == "en"
    assert found["title"] == "Failed: 5 of 164 scenarios \N{EN DASH} cohabit"
    assert found["revealed"] == [True], "a cell's link must open the scenario it leads to"


@needs_chromium
def test_the_whole_policy_fits_a_screen(tmp_path: Path) -> None:
    events = full_policy(2, failing=[failing_name()])
    found = examine(tmp_path, render(model_of(events)), 1280)
    assert found["matrices"] == [18 * 18]
    assert found["heads"], "column heads lie over each other"
    assert found["scroll"] <= found["client"] <= 1280
    assert found["wide"] == 0, "a matrix or a timeline is wider than its place"
    assert found["tall"] <= 720
    assert found["folded"] > 18 + 2
    assert found["revealed"] == [True, True], "pairs and triples must open when they are asked for"
    assert (found["dead"], found["duplicates"], found["poor"]) == ([], [], [])


@needs_chromium
def test_print_shows_what_the_screen_folds(tmp_path: Path) -> None:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext (poppler-utils) is not installed")
    source, pdf = tmp_path / "report.html", tmp_path / "report.pdf"
    source.write_text(render(model_of(passing_run())), encoding="utf-8")
    run_chromium(tmp_path, f"--print-to-pdf={pdf}", source.as_uri())
    text = subprocess.run(
        ["pdftotext", "-layout", str(pdf), "-"], capture_output=True, text=True, check=True
    ).stdout
    assert text.count("attach a") >= 10
    assert "qemu-system-x86_64 -m 1024" in text


def test_headlines(tmp_path: Path) -> None:
    def title(page: str) -> str:
        return re.findall("<h1>(.*?)</h1>", page)[0]  # type: ignore[no-any-return]

    assert title(render(model_of(passing_run()))) == "Passed: 10 of 10 scenarios"
    cut = render(read(write(passing_run(), tmp_path, cut=30)))
    assert title(cut) == "Incomplete: 10 of 10 scenarios ran"
    assert "its record has no end" in cut
    interrupted = SampleRun((NEW,), ("ops",), {}).end(interrupted=True)
    assert title(render(model_of(interrupted))) == "Interrupted. Passed: 2 of 2 scenarios"
