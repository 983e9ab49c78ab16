"""The report page in a real headless Chromium: it draws the plots, asks no network, and logs no error.

Screenshots are left in test-artefacts/ to be looked at.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from synthetic import example_best, record, small_run, write_run
from training_folder import folder_of

from feedrate.analysis import html_parts, load_run
from feedrate.analysis.page import write_page
from feedrate.analysis.training import load_training
from feedrate.analysis.training_page import write_training_page

ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"
HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)> " ' & $title ${body} --> <!-- %{x} </td>"""
SMALL = frozenset({"throughput", "sizes", "timeline", "memory"})
QUIET = ("file:", "data:", "blob:", "about:")


@pytest.fixture(scope="module")
def chromium():
    """A browser under the test's control. Without one, the test is skipped, and in CI it fails."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        why = "needs Chromium: apt-get install chromium chromium-driver"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1400", "--force-device-scale-factor=1"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def shown(chromium, tmp_path):
    """Writes the page of a run, opens it, takes a picture, and finds nothing to complain of.

    Its plots are those named, and those that it has perhaps.
    """

    def show(run_folder, name, *, plots, perhaps=frozenset(), write=lambda folder, path: write_page(load_run(folder), path)):
        path = tmp_path / f"{name}.html"
        write(run_folder, path)
        for log in ("browser", "performance"):
            chromium.get_log(log)
        chromium.get(path.as_uri())
        wait(lambda: chromium.execute_script("return document.readyState") == "complete")
        assert plotted(chromium) - perhaps == plots
        wait(lambda: drawn(chromium) == plotted(chromium))
        ARTEFACTS.mkdir(exist_ok=True)
        height = chromium.execute_script("return document.documentElement.scrollHeight")
        chromium.set_window_size(1200, min(max(height, 600), 8000))
        chromium.save_screenshot(str(ARTEFACTS / f"report-{name}.png"))
        chromium.set_window_size(1200, 1400)
        assert drawn(chromium) == plotted(chromium)
        assert [entry["message"] for entry in chromium.get_log("browser")] == []
        assert requested(chromium) == []
        return chromium

    return show


def wait(condition, within_s=30):
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "this did not come true"
        time.sleep(0.05)


def plotted(browser):
    """Names of the plots that the page has a place for."""
    ids = browser.execute_script("return [...document.querySelectorAll('.plotly-graph-div')].map(plot => plot.id)")
    assert len(ids) == len(set(ids))
    return {each.removeprefix("plot-") for each in ids}


def drawn(browser):
    """Names of the plots whose picture is there and has a size."""
    ids = browser.execute_script(
        "return [...document.querySelectorAll('.plotly-graph-div')].filter(plot => {"
        " const svg = plot.querySelector('.main-svg'); return svg && svg.getBoundingClientRect().height > 200; }).map(plot => plot.id)"
    )
    return {each.removeprefix("plot-") for each in ids}


def requested(browser):
    """Addresses that the page asked a network for."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(QUIET)]


def css(browser, selector, name):
    return browser.execute_script("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name)


def text_of(browser, selector):
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def test_the_page_of_a_real_run(shown, finished):
    """Answer first, what to paste, plots, tables; every heading has something under it."""
    # The model of loading is shown where it describes what was measured, which differs from run to run.
    browser = shown(finished.run, "real", plots={"throughput", "heat", "timeline", "memory"}, perhaps={"expected", "changes"})
    assert "samples/s" in text_of(browser, ".headline")
    assert text_of(browser, "pre code").startswith("DataLoader(dataset")
    headings = browser.execute_script("return [...document.querySelectorAll('h2')].map(each => each.textContent)")
    assert headings[0] == "Answer"
    assert {"Ranking", "How much each dimension matters", "Where the time goes", "Machine and versions"} <= set(headings)
    assert len(headings) == len(set(headings))


def test_points_tell_what_they_are(shown, tmp_path):
    """The pointer over a point of a plot shows its setting."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    browser = shown(write_run(tmp_path / "run", small_run(), best=example_best()), "points", plots=SMALL)
    point = browser.find_element(By.CSS_SELECTOR, "#plot-throughput .points path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    wait(lambda: browser.execute_script("return document.querySelector('#plot-throughput .hoverlayer').textContent"))
    assert "samples/s" in text_of(browser, "#plot-throughput .hoverlayer")


def test_the_page_of_a_training(shown, tmp_path):
    """Rate, waiting and workers in one plot; the pointer over a decision shows its reason."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    browser = shown(folder_of(tmp_path / "run"), "training", plots={"timeline"}, write=lambda folder, path: write_training_page(load_training(folder), path))
    assert "3 workers trained 1.90x" in text_of(browser, ".headline")
    titles = browser.execute_script("return [...document.querySelectorAll('#plot-timeline .ytitle, #plot-timeline .y2title, #plot-timeline .y3title')].map(each => each.textContent)")
    assert titles == ["batches/s", "waiting, %", "workers"]
    mark = browser.find_elements(By.CSS_SELECTOR, "#plot-timeline .points path")[-1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(browser).move_to_element(mark).perform()
    wait(lambda: browser.execute_script("return document.querySelector('#plot-timeline .hoverlayer').textContent"))
    assert "608 samples/s" in text_of(browser, "#plot-timeline .hoverlayer")


def test_an_empty_run(shown, tmp_path):
    browser = shown(write_run(tmp_path / "run", []), "empty", plots=set())
    assert "No trial was measured" in text_of(browser, ".headline")


def test_1000_trials(shown, tmp_path):
    statuses = ("complete", "complete", "pruned", "failed")
    records = [
        record(n, num_workers=n % 33, batch_size=(32, 64, 128)[n % 3], rate_sps=500.0 + n, status=statuses[n % 4],
               prefetch_factor=1 + n // 99 if n % 33 else None, step_only_sps=3000.0)
        for n in range(1000)
    ]  # fmt: skip
    browser = shown(write_run(tmp_path / "run", records, finished=True), "1000", plots=SMALL | {"heat"})
    folded = browser.execute_script("return document.querySelector('details summary').textContent")
    assert folded.endswith("more rows")


def test_hostile_names_stay_text(shown, tmp_path):
    """No alert, no element made of them; what is shown is what was recorded."""
    records = [record(n, num_workers=n, rate_sps=400.0 + n, hostname=HOSTILE, unit=HOSTILE) for n in (1, 2)]
    records.append(record(3, status="failed", failure_message=HOSTILE, failure_kind=HOSTILE))
    workload = {"name": HOSTILE, "unit": HOSTILE, "options": {HOSTILE: HOSTILE}}
    run = write_run(tmp_path / "run", records, finished=True, workload=workload, command=HOSTILE, argv=None)
    browser = shown(run, "hostile", plots=SMALL - {"sizes"})
    assert text_of(browser, "h1").startswith(f"feedrate: {HOSTILE}")
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert HOSTILE in text_of(browser, "main")


def test_light_dark_and_paper(shown, chromium, tmp_path):
    """Text and plots change with the reader's colours, while the page is open; paper is white whatever the screen is."""
    run = write_run(tmp_path / "run", small_run(), best=example_best())
    ink = "return document.querySelector('#plot-throughput').layout.font.color"
    try:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "light"}]})
        browser = shown(run, "light", plots=SMALL)
        assert (css(browser, "body", "backgroundColor"), browser.execute_script(ink)) == ("rgb(255, 255, 255)", "#1c1c1c")
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
        wait(lambda: browser.execute_script(ink) == "#e8e8e8")
        assert css(browser, "body", "backgroundColor") == "rgb(21, 24, 28)"
        browser.save_screenshot(str(ARTEFACTS / "report-dark.png"))
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]})
        wait(lambda: browser.execute_script(ink) == "#000000")
        assert css(browser, "body", "backgroundColor") == "rgb(255, 255, 255)"
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_everything_is_reached_without_a_mouse(shown, tmp_path):
    """Folded parts and wide tables take the focus; each plot and table has a name for a screen reader."""
    browser = shown(write_run(tmp_path / "run", small_run(), best=example_best()), "keyboard", plots=SMALL)
    unnamed = "return [...document.querySelectorAll('[role=img], [role=region]')].filter(each => !each.getAttribute('aria-label')).length"
    assert browser.execute_script(unnamed) == 0
    assert browser.execute_script("return [...document.querySelectorAll('.scroll')].every(each => each.tabIndex === 0)")
    assert browser.execute_script("return document.querySelectorAll('table').length === document.querySelectorAll('table caption').length")
    from selenium.webdriver import ActionChains, Keys

    seen = set()
    for _ in range(60):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        seen.add(browser.execute_script("return document.activeElement.tagName + '.' + document.activeElement.className"))
    assert "DIV.scroll" in seen
    assert any(each.startswith("SUMMARY") for each in seen)


def test_a_page_of_a_search_that_goes_on_shows_what_is_written_next(chromium, tmp_path, monkeypatch):
    """It reloads itself until the search has ended."""
    monkeypatch.setattr(html_parts, "REFRESH_S", 1)
    folder, path = tmp_path / "run", tmp_path / "going.html"
    write_page(load_run(write_run(folder, small_run()[:2])), path)
    chromium.get(path.as_uri())
    assert "so far" in text_of(chromium, ".headline")
    write_page(load_run(write_run(folder, small_run(), best=example_best())), path)
    wait(lambda: "4.46x the baseline" in chromium.page_source)
    chromium.execute_script("window.still = true")
    time.sleep(2.5)
    assert chromium.execute_script("return window.still"), "a finished page stays"
