"""A cluster started as in docs/cluster.md shows no page to people without the token."""

import http.client
import re
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path

import psutil
import pytest
from ray_head import TOKEN, free_port

CLUSTER = Path(__file__).parents[2] / "docs" / "cluster.md"
QUIET = {"RAY_enable_metrics_collection": "0", "AUTOSCALER_METRIC_PORT": "-1", "DASHBOARD_METRIC_PORT": "-1"}


def documented():
    """The variables that docs/cluster.md sets before `ray start`."""
    (line,) = re.findall(r"^\$ export (.*)\n\$ ray start", CLUSTER.read_text(), re.MULTILINE)
    return dict(word.split("=") for word in line.split())


def test_the_examples_close_the_pages():
    """In the guide and in cluster.yaml and rayjob.yaml."""
    assert documented() | QUIET == documented()
    for name in ("cluster.yaml", "deploy/rayjob.yaml"):
        text = (CLUSTER.parents[1] / name).read_text()
        for variable, value in QUIET.items():
            assert re.search(rf"{variable}[=:,\s]+(value:\s*)?['\"]?{value}\b", text), (name, variable)


def open_pages(process):
    """Ports of a process's descendants on which a page is shown without a token; the address tells who sees it."""
    found = []
    for child in process.children(recursive=True):
        try:
            listening = [each for each in child.net_connections(kind="inet") if each.status == psutil.CONN_LISTEN]
        except psutil.NoSuchProcess:
            continue
        for each in listening:
            address = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(each.laddr.ip, each.laddr.ip.removeprefix("::ffff:"))
            try:
                with urllib.request.urlopen(f"http://{address}:{each.laddr.port}/metrics", timeout=5) as page:
                    found.append((child.name(), each.laddr.ip, page.status))
            except (OSError, http.client.HTTPException):
                continue
    return found


@pytest.mark.soak
@pytest.mark.parametrize("environment", [documented(), {"RAY_AUTH_MODE": "token"}])
def test_no_page_is_open_without_the_token(start, environment):
    """Without the variables there are three, on all interfaces: if a new Ray closes them, the variables can go."""
    folder = Path(tempfile.mkdtemp(prefix="feedrate-pages-", dir="/tmp"))
    arguments = ["--head", "--block", "--disable-usage-stats", f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={free_port()}"]
    arguments += ["--num-cpus=1", "--object-store-memory=80000000", f"--temp-dir={folder}"]
    ray = Path(sys.executable).with_name("ray")
    head = start("start", *arguments, program=[ray], RAY_AUTH_TOKEN=TOKEN, **environment)
    try:
        process = psutil.Process(head.process.pid)
        head.until(lambda: any(child.name().startswith("ray::DashboardAg") for child in process.children(recursive=True)), within_s=90)
        if "AUTOSCALER_METRIC_PORT" in environment:
            head.until(lambda: any(child.name().startswith("ray::RuntimeEnv") for child in process.children(recursive=True)))
            assert open_pages(process) == []
        else:
            head.until(lambda: len(open_pages(process)) == 3, within_s=60)
    finally:
        head.process.terminate()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
