"""Size of the page of a report, and how long a browser takes to open it: `python -m tests.benchmarks.bench_page`.

The report of simulated scored rows is made in memory. Chromium, without a window, then opens the page several times;
the time is that from the start of the navigation to the end of the load event, as the browser tells it. The last line
is a JSON object.
"""

import argparse
import asyncio
import json
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import aiohttp

from pipeline.config import Metric, Objective, Select
from pipeline.report import report_page
from pipeline.selection import Query, TableSource, select_many, summarise
from tests.benchmarks.bench_select import machine
from tests.metrics.tables import agreeing_table

FACTS = {"version": "0", "scored": "s" * 32, "fingerprint": "f" * 32, "made_from": {}, "scored_by": {}}
TIMING = "JSON.stringify(performance.getEntriesByType('navigation')[0])"


def written(num_rows: int, path: Path) -> float:
    """Seconds that report and page took; the page lies at the path."""
    source = TableSource(table=agreeing_table(num_rows))
    query = Query(objective=Objective(name="dpo"), metric=Metric(), rule=Select(fraction=0.4))
    [found] = select_many(source, [query])
    start = time.perf_counter()
    path.write_text(report_page(summarise(found, source), FACTS))
    return time.perf_counter() - start


async def opened(page: Path, folder: Path, repeats: int) -> list[float]:
    """Milliseconds of each time that a browser opened the page."""
    profile = folder / "profile"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    browser = subprocess.Popen(["chromium", *options, "about:blank"], stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        while not port_file.exists() or "\n" not in port_file.read_text():
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                url = next(each for each in await answer.json() if each["type"] == "page")["webSocketDebuggerUrl"]
            async with session.ws_connect(url, max_msg_size=0) as socket:
                return [await _time_of(socket, page) for _ in range(repeats)]
    finally:
        browser.terminate()
        browser.wait()


async def _time_of(socket: aiohttp.ClientWebSocketResponse, page: Path) -> float:
    await _asked(socket, "Page.enable")
    await _asked(socket, "Page.navigate", url=page.as_uri())
    while (await socket.receive_json()).get("method") != "Page.loadEventFired":
        pass
    await asyncio.sleep(0.2)
    found = await _asked(socket, "Runtime.evaluate", expression=TIMING)
    return float(json.loads(found["result"]["value"])["loadEventEnd"])


async def _asked(socket: aiohttp.ClientWebSocketResponse, method: str, **params: str) -> dict:
    await socket.send_json({"id": 1, "method": method, "params": params})
    while (answer := await socket.receive_json()).get("id") != 1:
        pass
    return answer["result"]


def main() -> None:
    """Print size and times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        seconds = written(options.rows, page)
        times = asyncio.run(opened(page, Path(folder), options.repeats))
        found = {"rows": options.rows, "bytes": page.stat().st_size, "report_and_page_s": seconds, "open_ms": times}
    print(f"{machine()}: {found['rows']:,} rows, {found['bytes']:,} bytes, opened in {median(times):.0f} ms (median)")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
