"""The report inside the real MLflow UI, in a real browser."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from test_poc import TINY, featkd, outcome

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"),
]


@contextlib.contextmanager
def mlflow_ui(root):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("featkd")), "ui", "--root", str(root), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _wait_for(url, seconds=60):
    for _ in range(seconds * 2):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(url, timeout=2)
        time.sleep(0.5)
    raise TimeoutError(url)


@contextlib.contextmanager
def browser(folder):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "window-size=1400,1100", f"user-data-dir={folder}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def test_the_ui_shows_parent_and_children_and_the_report_in_its_frame(tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support import expected_conditions as until
    from selenium.webdriver.support.ui import WebDriverWait

    told = outcome(featkd("run", TINY, root=tmp_path))
    experiment, run = told["mlflow"]["experiment_id"], told["mlflow"]["run_id"]
    with mlflow_ui(tmp_path) as url, browser(tmp_path / "chrome") as driver:
        wait = WebDriverWait(driver, 60)
        driver.get(f"{url}/#/experiments/{experiment}/runs?compareRunsMode=TABLE")
        wait.until(until.presence_of_element_located((By.PARTIAL_LINK_TEXT, told["run_id"])))
        time.sleep(2)
        driver.save_screenshot(str(tmp_path / "runs.png"))
        driver.get(f"{url}/#/experiments/{experiment}/runs/{run}/artifacts/report.html")
        frame = wait.until(until.presence_of_element_located((By.TAG_NAME, "iframe")))
        assert "allow-scripts" in (frame.get_attribute("sandbox") or "")
        driver.switch_to.frame(frame)
        heading = wait.until(until.visibility_of_element_located((By.TAG_NAME, "h1")))
        assert heading.text == "Drill"
        assert len(driver.find_elements(By.TAG_NAME, "svg")) >= 5
        driver.switch_to.default_content()
        driver.save_screenshot(str(tmp_path / "report.png"))
        errors = [
            entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE" and "about:srcdoc" in str(entry)
        ]
        assert not errors
