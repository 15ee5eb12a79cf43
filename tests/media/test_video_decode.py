"""Frames by time stamp: any container, far into a film, irregular, turned, squeezed, still, damaged, missing."""

import random
from fractions import Fraction

import av
import numpy as np
import pytest

from audiox_trainer.trainer.media.source import MediaError, Reason
from audiox_trainer.trainer.media.video_decode import FrameReader, video_span
from tests.helpers.films import turn
from tests.helpers.media_files import CODED, number_of, numbered, numbered_film

EVEN = [i / 25 for i in range(500)]


def numbers(path, times, start=0.0):
    """The pictures shown at these times, in seconds after the film's beginning; where reading it began."""
    with FrameReader(path, CODED, start) as reader:
        began = reader._before.time - reader.begin
        return [number_of(picture) for picture in reader.nearest([reader.begin + time for time in times])], began


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "3", "g": "50"}),
        ("open.mp4", "libx264", {"bf": "3", "g": "50", "x264-params": "open-gop=1"}),
        ("a.mkv", "libx264", {"bf": "3", "g": "50"}),
        ("a.ts", "libx264", {"bf": "3", "g": "50"}),
        ("a.webm", "libvpx-vp9", {"g": "60", "deadline": "realtime", "cpu-used": "8"}),
        ("old.ts", "mpeg2video", {"bf": "2", "g": "15"}),
        ("a.avi", "mpeg4", {"g": "50"}),
        ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1"}),  # without a key frame after the first
    ],
)
def test_a_segment_begins_with_the_frame_that_decoding_everything_gives(tmp_path, name, codec, options):
    path = numbered_film(tmp_path / name, EVEN, codec, options)
    for start in (0.51, 11.99, 17.31):
        times = [start + i / 5 for i in range(10)]
        shown, began = numbers(path, times, start)
        assert shown == [round(time * 25) for time in times]
        assert began <= start
        if name not in ("a.avi", "refresh.mp4"):
            assert began >= start - 10.5, "what lies far before the segment need not be decoded"
    shown, began = numbers(path, [19.9, 30.0], 19.9)
    assert shown[1] == 499


def test_irregular_frames_are_picked_by_time(tmp_path):
    times = [0.0, 0.04, 0.5, 0.55, 0.9, 3.0, 3.001, 3.01, 4.0]
    path = numbered_film(tmp_path / "a.mp4", times, unit=Fraction(1, 1000))
    asked = [0.01, 0.021, 0.26, 0.28, 0.53, 0.6, 1.9, 2.0, 3.0004, 3.0007, 3.006, 3.4, 3.6]
    assert numbers(path, asked)[0] == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7, 8]


def test_time_begins_with_the_film(tmp_path):
    """A transport stream's first time stamp is never 0."""
    path = numbered_film(tmp_path / "a.ts", [1.4 + i / 25 for i in range(50)], "mpeg2video")
    with FrameReader(path, CODED) as reader:
        assert reader.begin > 1
    assert numbers(path, [0.0, 1.0])[0] == [0, 25]
    assert video_span(path).start > 1 and video_span(path).count == 50


def test_pictures_stand_upright(tmp_path):
    """Telephones store pictures on their side: the left of a decoded one belongs to the bottom."""
    path = numbered_film(tmp_path / "a.mp4", EVEN[:5], "mpeg4")
    with FrameReader(path, CODED) as reader:
        lying = reader.nearest([0.04])[0]
    turn(path)
    with FrameReader(path, CODED) as reader:
        upright = reader.nearest([0.04])[0]
    assert number_of(lying) == 1
    rotation = next(av.open(str(path)).decode(video=0)).rotation
    assert abs(rotation) == 90
    # Bit 0 is the top left square: turned counter-clockwise it goes to the bottom left, otherwise to the top right.
    assert number_of(upright) == (1 << 6 if rotation == 90 else 1 << 2)
    np.testing.assert_array_equal(upright, np.rot90(lying, rotation // 90, (1, 2)))


def test_pixels_that_are_not_square(tmp_path):
    """Twice as wide as high when it is shown: the middle half is left, and stretched."""
    path = numbered_film(tmp_path / "a.mp4", EVEN[:300], sample_aspect_ratio=Fraction(2, 1))
    with FrameReader(path, CODED) as reader:
        picture = reader.nearest([0b010010010 / 25])[0]
    assert (picture[1, :, 12:36] > 127).all(), "the middle column of squares fills the picture"


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.png", "png", "rgb24"), ("a.jpg", "mjpeg", "yuvj420p"), ("a.webp", "libwebp", "yuv420p"),
     ("a.gif", "gif", "rgb8"), ("50%03d.png", "png", "rgb24")],
)  # fmt: skip
def test_a_still_picture_stands_for_every_moment(tmp_path, name, codec, pixels):
    with av.open(str(tmp_path / "made"), "w", format="gif" if codec == "gif" else "image2pipe") as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = CODED, CODED, pixels
        for frame in (numbered(0b100010101).reformat(format=pixels), None):
            container.mux(stream.encode(frame))
    path = (tmp_path / "made").rename(tmp_path / name)
    for start in (0.0, 100.0):
        with FrameReader(path, CODED, start) as reader:
            reader.check_begins(reader.begin + start)
            pictures = reader.nearest([reader.begin + start + time for time in (0.0, 3.0, 1000.0)])
            reader.check_reaches(reader.begin + start + 1000.0)
        assert [number_of(picture) for picture in pictures] == [0b100010101] * 3


def test_a_film_of_one_picture(tmp_path):
    path = numbered_film(tmp_path / "a.mp4", [0.0])
    with FrameReader(path, CODED) as reader:
        assert number_of(reader.nearest([50.0])[0]) == 0
        reader.check_reaches(50.0)


def test_the_last_picture_lasts_as_long_as_it_is_shown(tmp_path):
    path = numbered_film(tmp_path / "a.mp4", EVEN[:25])
    with FrameReader(path, CODED) as reader:
        reader.nearest([0.0, 3.0])
        reader.check_reaches(1.4)
        with pytest.raises(MediaError, match=r"the pictures end at 1\.00 s, the sound at 1\.60 s") as caught:
            reader.check_reaches(1.6)
    assert caught.value.reason is Reason.TRUNCATED


def test_the_cover_of_a_record_is_no_film(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=44100, layout="mono")
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = CODED, CODED, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        for frame in (numbered(1), None):
            container.mux(cover.encode(frame))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for part in (frame, None):
            container.mux(sound.encode(part))
    for read in (lambda path: FrameReader(path, CODED).__enter__(), video_span):
        with pytest.raises(MediaError, match="no pictures but a cover") as caught:
            read(tmp_path / "a.mp4")
        assert caught.value.reason is Reason.NO_VIDEO


def test_a_damaged_picture_is_named(tmp_path):
    """Decoders make up what they miss, and say so; damage that nobody would see is not looked for."""
    whole = numbered_film(tmp_path / "a.mp4", EVEN[:100], options={"g": "25", "crf": "1"}).read_bytes()
    sizes = [packet.size for packet in av.open(str(tmp_path / "a.mp4")).demux(video=0)]
    rng, broken = random.Random(0), bytearray(whole)
    begin = whole.index(b"mdat") + 4 + sum(sizes[:50])
    for _ in range(40):
        broken[begin + rng.randrange(sum(sizes[50:60]))] ^= 0xFF
    (tmp_path / "b.mp4").write_bytes(broken)
    assert numbers(tmp_path / "b.mp4", EVEN[:40])[0] == list(range(40)), "before the damage everything is there"
    with pytest.raises(
        MediaError, match=r"b\.mp4: (the picture at [12]\.\d\d s is damaged|.*[Ii]nvalid data)"
    ) as caught:
        numbers(tmp_path / "b.mp4", EVEN[:100])
    assert caught.value.reason is Reason.UNDECODABLE
