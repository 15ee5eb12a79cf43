"""The training sets of Table A.1: published lists and folders of media become manifests, with clips and hours."""

import json

import numpy as np
import pytest

from audiox_trainer.launch import prepare, set_command
from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.sets.training_sets import SETS, segments_of
from tests.helpers.media_files import film
from tests.helpers.run_script import run_failing
from tests.sets.test_test_sets import AUDIOCAPS, AUDIOTIME, VGGSOUND, sound

STRONG = """segment_id\tstart_time_seconds\tend_time_seconds\tlabel
s9d-2nhuJCQ_30000\t2.627\t7.237\t/m/053hz1
s9d-2nhuJCQ_30000\t0.000\t1.500\t/m/09x0r
b0RFKhbpFJA_0\t0.100\t0.200\t/m/09x0r
"""
NAMES = "/m/053hz1\tCheering\n/m/09x0r\tSpeech\n"
AUDIOSET_PART = {
    "num_captions_per_audio": 1,
    "data": [{"id": "Yb0RFKhbpFJA.wav", "caption": "Wind and a man.", "audio": "wav_path", "duration": 10.0}],
}
SOUNDBIBLE = [{"title": "Airplane", "caption": "An airplane is landing.", "id": "2219", "duration": 14.14}]
FREESOUND = {
    "num_captions_per_audio": 1,
    "data": [{"id": "2219", "file_name": "UK Mello.wav", "caption": "A ringtone is playing.", "tags": ["a"]}],
}


def make(folder, name, *lists, more=()):
    words = ["set", name, "--list", *(str(folder / each) for each in lists), "--media", str(folder / "media"), *more]
    arguments = prepare.parse([*words, "--out", str(folder / "out.jsonl")])
    arguments.act(arguments)
    return read_entries(folder / "out.jsonl")


def test_audiocaps_has_a_line_for_each_file_and_hours_next_to_the_papers(tmp_path, capsys):
    (tmp_path / "train.csv").write_text(AUDIOCAPS)
    sound(tmp_path / "media/7fmOlUlwoNg_0.wav", 21.5)
    with pytest.raises(ValueError, match="2 of 3 clips have no file"):
        make(tmp_path, "audiocaps", "train.csv")
    (entry,) = make(tmp_path, "audiocaps", "train.csv", more=["--leave-out"])
    assert entry.captions == ["Constant rattling noise, and sharp vibrations"] and entry.domain == "audio"
    missing = [json.loads(line) for line in (tmp_path / "out.jsonl.missing.jsonl").read_text().splitlines()]
    assert [row["id"] for row in missing] == ["103548", "103547"]
    said = capsys.readouterr().out
    assert "1 line with 1 text. 2 of 3 clips of the list have no media." in said
    assert "T2A    3      45000         0.0    125.1         44997 fewer than in the paper" in said  # 10 + 10 + 1.5 s


def test_long_files_count_as_what_segment_makes_of_them():
    assert [segments_of(seconds) for seconds in (0.3, 9.98, 10.4, 11.0, 30.0, 30.99)] == [0, 1, 1, 2, 3, 3]


def test_vggsound_takes_the_lists_training_part(tmp_path):
    (tmp_path / "vggsound.csv").write_text(VGGSOUND)
    (tmp_path / "media").mkdir()
    film(tmp_path / "media/--0PQM4-hqg_000030.mp4", 1, sound=np.zeros(44100, np.float32))
    (entry,) = make(tmp_path, "vggsound", "vggsound.csv")
    assert entry.captions == ["waterfall burbling"] and entry.video == entry.audio
    assert entry.origins == {"waterfall burbling": ("labels", "caption")}


def test_audioset_strong_has_events_by_name(tmp_path):
    (tmp_path / "audioset_train_strong.tsv").write_text(STRONG)
    sound(tmp_path / "media/Ys9d-2nhuJCQ.flac")
    sound(tmp_path / "media/b0RFKhbpFJA_0.wav")
    with pytest.raises(ValueError, match=r"mid_to_display_name\.tsv: No such file.*has the labels' names"):
        make(tmp_path, "audioset", "audioset_train_strong.tsv")
    (tmp_path / "mid_to_display_name.tsv").write_text(NAMES)
    first, second = make(tmp_path, "audioset", "audioset_train_strong.tsv")
    assert first.annotation["SED"] == [
        {"start": 0.0, "end": 1.5, "event": "Speech"}, {"start": 2.627, "end": 7.237, "event": "Cheering"},
    ]  # fmt: skip
    assert first.captions == ["Cheering, Speech"] and second.annotation["category"] == {"Speech": None}
    (tmp_path / "mid_to_display_name.tsv").write_text("/m/09x0r\tSpeech\n")
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(ValueError, match="no list of audioset as it was published: lacks '/m/053hz1'"):
        make(tmp_path, "audioset", "audioset_train_strong.tsv")


def test_wavcaps_keeps_equal_numbers_of_two_sources_apart(tmp_path):
    (tmp_path / "as_final.json").write_text(json.dumps(AUDIOSET_PART))
    (tmp_path / "sb_final.json").write_text(json.dumps(SOUNDBIBLE))
    (tmp_path / "fsd_final.json").write_text(json.dumps(FREESOUND))
    sound(tmp_path / "media/AudioSet_SL_flac/Yb0RFKhbpFJA.flac")
    sound(tmp_path / "media/freesound/2219.flac", 2.0)
    lists = ("as_final.json", "sb_final.json", "fsd_final.json")
    with pytest.raises(ValueError, match=r"SoundBible_2219: none is called 2219, .* 'SoundBible' in its name"):
        make(tmp_path, "wavcaps", *lists)
    sound(tmp_path / "media/SoundBible_flac/2219.flac")
    entries = make(tmp_path, "wavcaps", *lists)
    assert [entry.captions for entry in entries] == [
        ["Wind and a man."], ["An airplane is landing."], ["A ringtone is playing."],
    ]  # fmt: skip
    assert "SoundBible" in entries[1].audio and "freesound" in entries[2].audio


def test_the_media_folders_own_name_counts(tmp_path):
    (tmp_path / "sb_final.json").write_text(json.dumps(SOUNDBIBLE))
    sound(tmp_path / "SoundBible/2219.wav")
    words = ["set", "wavcaps", "--list", str(tmp_path / "sb_final.json"), "--media", str(tmp_path / "SoundBible")]
    arguments = prepare.parse([*words, "--out", str(tmp_path / "out.jsonl")])
    arguments.act(arguments)
    assert len(read_entries(tmp_path / "out.jsonl")) == 1


def test_audiotime_as_it_was_published_has_a_second_text_after_the_caption(tmp_path):
    for kind, events in AUDIOTIME.items():
        folder = tmp_path / f"media/train5000_{kind}"
        sound(folder / "audio/syn_1.wav")
        clip = {"syn_1": {"event": events, "caption": [f"a caption of {kind}", "Yes."]}}
        (folder / f"{kind}_captions.json").write_text(json.dumps(clip))
    lists = [f"media/train5000_{kind}/{kind}_captions.json" for kind in AUDIOTIME]
    assert [entry.captions for entry in make(tmp_path, "audiotime", *lists)] == [
        [f"a caption of {kind}"] for kind in AUDIOTIME
    ]
    (tmp_path / "out.jsonl").unlink()
    for wrong in ([], [3], 3, None):
        (tmp_path / "ordering.json").write_text(json.dumps({"syn_1": {"event": {}, "caption": wrong}}))
        with pytest.raises(ValueError, match="is no caption"):
            make(tmp_path, "audiotime", "ordering.json")


def test_films_are_whole_and_have_the_sound_that_lies_beside_them(tmp_path, capsys):
    (tmp_path / "train.txt").write_text("2015-02-16-16-49-06\n")
    (tmp_path / "media").mkdir()
    film(tmp_path / "media/2015-02-16-16-49-06_denoised.mp4", 2, sound=np.zeros(88200, np.float32))
    sound(tmp_path / "media/2015-02-16-16-49-06_denoised.wav", 2.0)
    sound(tmp_path / "media/2015-02-16-16-49-06_mic.wav", 2.0)
    (entry,) = make(tmp_path, "greatesthits", "train.txt")
    assert entry.audio.endswith("_denoised.wav") and entry.video.endswith("_denoised.mp4") and not entry.captions
    assert "here the films are whole" in capsys.readouterr().out


def test_music_is_music(tmp_path):
    (tmp_path / "V2M.txt").write_text("ng9x47T3c_E\nlJDM2l9EbJc\nng9x47T3c_E\n")  # a line twice
    (tmp_path / "media").mkdir()
    for name in ("ng9x47T3c_E", "lJDM2l9EbJc"):
        film(tmp_path / f"media/{name}.mp4", 1, sound=np.zeros(44100, np.float32))
    assert [entry.domain for entry in make(tmp_path, "v2m", "V2M.txt")] == ["music", "music"]
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "MUCapsCaptions.json").write_text('{"song.mp3": "A calm piano."}')
    sound(tmp_path / "media/song.wav")
    (entry,) = make(tmp_path, "mucaps", "MUCapsCaptions.json")
    assert entry.captions == ["A calm piano."] and entry.domain == "music"
    with pytest.raises(ValueError, match=r"out\.jsonl exists"):
        make(tmp_path, "mucaps", "MUCapsCaptions.json")
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "MUCapsCaptions.json").write_text('{"song.mp3": 3}')
    with pytest.raises(ValueError, match=r"out\.jsonl:1: captions is \[3\]"):
        make(tmp_path, "mucaps", "MUCapsCaptions.json")
    assert not (tmp_path / "out.jsonl").exists()


def test_every_set_of_the_command_is_known():
    assert set(set_command.NAMES) == set(SETS)


def test_a_refusal_is_a_sentence_of_the_command(tmp_path):
    said = run_failing(
        "launch/prepare.py", "set", "v2m", "--list", tmp_path / "none.txt", "--media", tmp_path, "--out", tmp_path / "o"
    )
    assert said.count("\n") == 1 and "give the published list" in said
