"""Small files that declare or imply endless work: refused with a reason, before the work begins."""

import struct
import time
import zlib
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.trainer.generation import user_media
from audiox_trainer.trainer.generation.prompts import MAX_SECONDS
from audiox_trainer.trainer.media import audio_decode
from audiox_trainer.trainer.media.clips import read_clips, read_sound
from audiox_trainer.trainer.media.mux import check_writable, write_media
from audiox_trainer.trainer.media.source import MediaError, Reason
from audiox_trainer.trainer.media.video_decode import MOST_PIXELS, FrameReader
from tests.helpers.media_files import FRAMES, MONO, numbered_film, sine

PICTURES = [i / 25 for i in range(30)]


@pytest.mark.parametrize("late", [601, 1e5, 1e7])
@pytest.mark.parametrize("ending", ["mkv", "mov"])
def test_sound_long_after_the_first_picture(tmp_path, ending, late):
    path = numbered_film(tmp_path / f"a.{ending}", PICTURES, sound=[(late, sine())], sound_codec="pcm_s16le")
    begin = time.monotonic()
    for video in (None, path):
        with pytest.raises(MediaError, match=r"the sound begins at .* s, more than 600 s after") as caught:
            next(read_clips(path, video, MONO, FRAMES))
        assert caught.value.reason is Reason.GAP
    with pytest.raises(MediaError):
        read_sound(path, MONO)
    with pytest.raises(ValueError, match=r"audio: .*the sound begins at"):
        user_media.load_beginning(path, MONO, None, 3)
    assert time.monotonic() - begin < 300
    assert next(read_clips(path, None, MONO, FRAMES, start=late - 1)).seconds > 1.9, "a segment may begin there"


def test_sound_a_little_late(tmp_path):
    path = numbered_film(tmp_path / "a.mkv", PICTURES, sound=[(100.0, sine())], sound_codec="pcm_s16le")
    assert len(list(read_clips(path, None, MONO, FRAMES))) == 50


@pytest.mark.parametrize("rate", [1, 10, 999])
def test_a_sample_rate_that_stretches_a_file(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.ones(1000, np.float32) / 2, rate)
    with pytest.raises(MediaError, match=f"a sample rate of {rate} Hz; expected 1000 to") as caught:
        next(read_clips(tmp_path / "a.wav", None, MONO, FRAMES))
    assert caught.value.reason is Reason.UNDECODABLE


def test_silence_without_end(tmp_path, monkeypatch):
    """An hour of it in flac is a few kB."""
    monkeypatch.setattr(audio_decode, "LONGEST", 600.0)
    soundfile.write(tmp_path / "a.flac", np.zeros(8000 * 3600, np.int16), 8000)
    assert (tmp_path / "a.flac").stat().st_size < 200_000
    with pytest.raises(MediaError, match="longer than 600 s; prepare segments of it") as caught:
        list(read_clips(tmp_path / "a.flac", None, MONO, FRAMES))
    assert caught.value.reason is Reason.TOO_LONG
    assert len(list(read_clips(tmp_path / "a.flac", None, MONO, FRAMES, start=1000, end=1100))) == 49
    monkeypatch.setattr(user_media, "LONGEST_GIVEN", 60.0)
    with pytest.raises(ValueError, match=r"audio: .*a\.flac: longer than 60 s; give a part of it"):
        user_media.load_beginning(tmp_path / "a.flac", MONO, 1.0, 3)


def test_a_film_of_months(generator, tmp_path):
    film = numbered_film(tmp_path / "a.mkv", [0.0, 1e7], unit=Fraction(1, 25))
    with pytest.raises(ValueError, match=rf"video: .* lasts 1e\+07 s from there; ask for at most {MAX_SECONDS:g}"):
        generator.generate(video=film)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [12_000, 30_000, 65_000])
def test_a_picture_of_gigabytes(tmp_path, side):
    """Black, one bit per pixel."""
    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj()
    data = b"".join(packer.compress(row) for _ in range(min(side, 2000))) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    assert side * side > MOST_PIXELS
    with pytest.raises(MediaError) as caught, FrameReader(tmp_path / "a.png", 32):
        pass
    assert caught.value.reason in (Reason.UNDECODABLE, Reason.ZERO_LENGTH)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes(tmp_path, seed):
    """Whatever becomes of a file, it is decoded or refused with a reason, in bounded time."""
    draw = np.random.default_rng(seed)
    ending = ("wav", "mkv", "mp4", "flac")[seed % 4]
    path = tmp_path / f"a.{ending}"
    if ending in ("wav", "flac"):
        soundfile.write(path, sine(), 44100)
    else:
        numbered_film(path, [i / 25 for i in range(25)], "mpeg4", sound=[(0.0, sine())])
    data = bytearray(path.read_bytes())
    for place in draw.integers(0, min(len(data), 4000) if seed % 2 else len(data), 1 + seed % 7):
        data[place] ^= 1 << int(draw.integers(8))
    path.write_bytes(data)
    begin = time.monotonic()
    try:
        clips = list(read_clips(path, path if ending in ("mkv", "mp4") else None, MONO, FRAMES))
    except MediaError:
        pass
    else:
        assert all(np.isfinite(clip.wave).all() and np.abs(clip.wave).max() <= 1 for clip in clips)
        assert len(clips) < 400
    assert time.monotonic() - begin < 300


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile 'real.mkv'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mkv\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("ending", ["mp4", "mkv", "m3u8", "ffconcat", "sdp", "%03d.png"])
def test_a_playlist_reads_no_other_file(tmp_path, text, ending):
    """Neither when it is decoded nor when its pictures are copied."""
    numbered_film(tmp_path / "real.mkv", PICTURES, "mpeg4")
    video = tmp_path / f"list.{ending}"
    video.write_text(text)
    with pytest.raises(MediaError), FrameReader(video, 32):
        pass
    for read in (check_writable, lambda out, video: write_media(out, torch.zeros(1, 8000), 8000, video)):
        with pytest.raises(ValueError, match=r"video: |the pictures of .*list\."):
            read(tmp_path / "out.mkv", video)
    assert not (tmp_path / "out.mkv").exists()
