"""launch/app.py in a real browser, and what it refuses."""

import io
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile

from audiox_trainer.launch.app import is_loopback, parse
from audiox_trainer.models.audiox import SamplingConfig
from tests.helpers.films import contents, wandering
from tests.helpers.random_weights import random_weights
from tests.helpers.run_script import run_script

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CLIP = 16_384 / 8000  # seconds of the small model's clip
pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Of a page with two sets of weights, at most 5 s of sound and files of 1 MB."""
    folder = tmp_path_factory.mktemp("app")
    teacher = random_weights(folder / "teacher", SamplingConfig("euler", 3, 2.0))
    student = random_weights(folder / "student", SamplingConfig("renoise", 2, 1.0))
    limits = ("--max-seconds", "5", "--max-upload", "1", "--max-steps", "20")
    command = [sys.executable, "launch/app.py", "--weights", teacher, student, "--port", "0", *limits]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.match(r"page: (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail("".join(lines))
            yield found[1]
        finally:
            process.terminate()
            process.wait(60)


def read(address):
    """Seconds, channels and rate of a sound, in a file or at an address."""
    data = urllib.request.urlopen(address, timeout=60).read() if "://" in address else Path(address).read_bytes()
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        assert sound.read().any()
        return sound.frames / sound.samplerate, sound.channels, sound.samplerate


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_in_a_browser(address, tmp_path):
    """Type, press, wait: each set of weights has a sound of the right length; then with a video; no error shows."""
    api = pytest.importorskip("playwright.sync_api")
    wandering(tmp_path / "film.mp4", 1.5, codec="h264")
    problems, hosts = [], set()
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "://" in request.url else None)
        page.goto(address)
        page.locator("#text textarea").fill("a bell, then two kicks")
        page.locator("#generate").click()
        page.get_by_text("T2A/T2M of “a bell, then two kicks”, 2.05 s, seed 0").nth(1).wait_for()
        assert [read(sound) for sound in links(page, ".wav")] == [(pytest.approx(CLIP), 1, 8000)] * 2
        assert page.locator(".spectrogram img").count() == 2

        page.locator("#video input[type=file]").set_input_files(tmp_path / "film.mp4")
        page.locator("#video video").wait_for()
        page.locator("#text textarea").fill("")
        page.locator("#generate").click()
        page.get_by_text(re.compile(r"V2A of .*, 1\.5\d s, seed 0")).nth(1).wait_for()
        assert [read(sound)[0] for sound in links(page, ".wav")] == [pytest.approx(1.5, abs=0.05)] * 2
        films = [contents(download(film, tmp_path)) for film in links(page, ".mp4")]
        assert len(films) == 2
        for film in films:
            assert film.packets == contents(tmp_path / "film.mp4").packets  # its pictures
            assert film.sound.shape[1] / film.rate == pytest.approx(1.5, abs=0.1) and film.sound.any()
        assert problems == []
        page.locator("#seconds input").fill("4")  # within the limit of 5
        page.locator("#generate").click()
        page.get_by_text(re.compile(r"lasts 1\.5\d s, the sound would need 4\.00 s of it")).wait_for()
        browser.close()
    assert hosts == {address.split("/")[2]}  # nobody else learns of it


def links(page, ending):
    """The addresses of the files that the outputs offer."""
    found = page.locator("a.download-link").evaluate_all("all => all.map(a => a.href)")
    return [address for address in found if address.endswith(ending)]


def download(address, folder):
    file = folder / f"downloaded{len(list(folder.iterdir()))}.mp4"
    file.write_bytes(urllib.request.urlopen(address, timeout=60).read())
    return file


@pytest.mark.slow
def test_ten_visitors_at_once_are_all_served(address):
    from gradio_client import Client

    client = Client(address, verbose=False)

    def visit(seed):
        given = [["student"], "a bell", "", None, None, "vary it", "", 0.6, 1.0, None, None, seed, False]
        return client.submit(*given, api_name="/generate").result(timeout=500)

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(visit, range(10)))
    sounds = [Path(sound_of(result, 1)).read_bytes() for result in results]  # of the second weights
    assert len(set(sounds)) == 10 and not any(sound_of(result, 0) for result in results)
    assert all(f"1.00 s, seed {seed}" in json.dumps(result, default=str) for seed, result in enumerate(results))


def sound_of(result, column):
    """The file of a column's player in what the client got: sound, picture, words and film of each column."""
    value = result[4 * column]
    return value["value"] if isinstance(value, dict) else value


def test_a_sound_is_started_once(generator, tmp_path, monkeypatch):
    """Its files are read and encoded there."""
    from audiox_trainer.trainer.generation.page import Form, PageLimits, answers

    started, start = [], generator.start_sound
    monkeypatch.setattr(generator, "start_sound", lambda prompt: started.append(prompt) or start(prompt))
    form = Form(["one", "two"], "a bell", "", None, None, "vary it", "", 0.6, 1.0, None, None, 3, False)
    steps = []
    both = {"one": generator, "two": generator}
    made = dict(answers(both, PageLimits(), form, tmp_path, lambda done, words: steps.append((done, words))))
    assert len(started) == 2 and [prompt.seed for prompt in started] == [3, 3]
    assert made["one"].sound[0] == 8000 and (made["one"].sound[1] == made["two"].sound[1]).all()
    assert steps[-1] == (1.0, "two: step 2 of 2")
    with pytest.raises(ValueError, match=r"seconds: 1\.0; this page makes at most 0\.5 s"):
        next(answers(both, PageLimits(seconds=0.5), form, tmp_path, print))
    assert len(started) == 2


@pytest.mark.slow
def test_answers_are_timed(generator, tmp_path):
    command = ["launch/bench.py", "page", "--weights", generator.folder, "--visitors", 3, "--rounds", 1]
    said = run_script(*command, "--out", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    assert 0 < result["alone"]["median"] and 0 < result["first"]["median"] < result["last"]["median"]
    assert "one visitor, s" in said and "last of 3, s" in said


@pytest.mark.slow
def test_what_a_visitor_is_told(address):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False)
    for given, message in (
        ([["student"], "", "", None, None, "vary it", "", 0.6, None, None, None, 0, False], "there is no condition"),
        ([[], "a bell", "", None, None, "vary it", "", 0.6, None, None, None, 0, False], "weights: none is chosen"),
        ([["student"], "a", "", None, None, "vary it", "", 0.6, 9, None, None, 0, False], "makes at most 5 s"),
        ([["student"], "a", "", None, None, "vary it", "", 0.6, None, 21, None, 0, False], "takes at most 20"),
        ([["student"], "a", "b", None, None, "vary it", "", 0.6, None, None, None, 0, False], "acts through guidance"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict(*given, api_name="/generate")


def test_only_this_machine_by_default(capsys):
    assert parse(["--weights", "w"]).host == "127.0.0.1"
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [
        True, True, True, False, False
    ]  # fmt: skip
    for wrong in (["--port", "70000"], ["--max-seconds", "0"], ["--max-seconds", "nan"], ["--max-steps", "0"]):
        with pytest.raises(SystemExit):
            parse(["--weights", "w", *wrong])
    assert "--port is 0 to 65535" in capsys.readouterr().err
