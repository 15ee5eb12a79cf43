"""The benchmark of decoding runs, and compares what it says. Its measurements mean nothing here."""

import shutil

import av
import pytest

from audiox_trainer.trainer.benchmarks import decode
from audiox_trainer.trainer.core.config import load_pretrain_config
from tests.helpers.media_files import numbered_film, sine

pytestmark = pytest.mark.slow


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
def test_a_film_is_decoded_by_both(tmp_path, root):
    model = load_pretrain_config(root / "configs" / "tiny.json").model
    film = numbered_film(tmp_path / "a.mp4", [i / 25 for i in range(75)], sound=[(0.0, sine(seconds=3))])
    result = decode.measure(model, rounds=1, seconds=1, film=film)
    rows = {row["variant"]: row for row in result["rows"]}
    assert result["film_seconds"] == pytest.approx(3, abs=0.05) and {"ffmpeg, 1 threads", "ours, 1 threads"} <= set(
        rows
    )
    ours, theirs = rows["ours, 1 threads"], rows["ffmpeg, 1 threads"]
    assert ours["wall_ratio"] == pytest.approx(ours["x_real_time"] / theirs["x_real_time"])
    assert len(decode.summary_lines(result)) == 1 + len(rows)
    with pytest.raises(ValueError, match="ffmpeg failed: "):
        decode.measure(model, rounds=1, seconds=1, film=numbered_film(tmp_path / "mute.mp4", [0.0, 0.04]))


def test_without_the_program_it_says_so(root, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="the ffmpeg program, which decoding is compared with, is not installed"):
        decode.measure(load_pretrain_config(root / "configs" / "tiny.json").model, rounds=1, seconds=1)


def test_the_busy_film_has_the_pictures_and_the_sound_that_the_documents_name(tmp_path):
    with av.open(str(decode.busy_film(tmp_path / "busy.mp4", 1.5))) as container:
        pictures, sound = container.streams.video[0], container.streams.audio[0]
        assert (pictures.codec.name, pictures.width, pictures.height, pictures.frames) == ("h264", 1280, 720, 45)
        assert (sound.codec.name, sound.rate, sound.layout.name) == ("aac", 48000, "stereo")
        assert container.duration / av.time_base == pytest.approx(1.5, abs=0.05)
        first, second, *_ = [frame.to_ndarray(format="gray") for frame in container.decode(pictures)]
    assert (first != second).mean() > 0.5
