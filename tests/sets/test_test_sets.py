"""Published lists, in the format they were published in, and a folder of media become prompts and a manifest."""

import json

import numpy as np
import pytest
import soundfile

from audiox_trainer.launch import testset
from audiox_trainer.trainer.generation.prompts import read_prompts
from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.sets.published_lists import READERS
from audiox_trainer.trainer.sets.test_sets import SETS
from audiox_trainer.trainer.sound_evaluation.folders import read_evaluated_prompts
from tests.helpers.media_files import film
from tests.helpers.run_script import run_failing

AUDIOCAPS = """audiocap_id,youtube_id,start_time,caption
103549,7fmOlUlwoNg,0,"Constant rattling noise, and sharp vibrations"
103548,6BJ455B1aAs,20,A rocket flies by
103547,6BJ455B1aAs,20,"An engine running, very loud"
"""
VGGSOUND = """---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,waterfall burbling,train
--1DIyQ9Sjk,12,"male speech, man speaking",test
"""
MUSICCAPS = """ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,\
is_audioset_eval
-0Gj8-vB1q4,30,40,"/m/0140xf,/m/02cjck","['low quality', 'sustained strings']","The low quality recording features
a ballad song.",4,False,True
"""
AVVP = "filename\tevent_labels\n--9O4XZOge4_50_60\tSpeech,Basketball_bounce\n-2hZ6VANwqE_30_40\tDog\n"
CLOTHO = """file_name,caption_1,caption_2,caption_3,caption_4,caption_5
Santa Motor.wav,A machine whines,Someone drills,A motor runs,A tool hums,"A saw, cutting"
"""
WAVCAPS = {
    "num_captions_per_audio": 1,
    "data": [
        {"id": "Y--0w1YA1Hm4.wav", "caption": "A bird chirps.", "duration": 10.0, "audio": "wav_path"},
        {"id": "2219", "caption": "An airplane lands.", "duration": 14.1, "title": "Airplane", "download_link": "x"},
    ],
}
AUDIOTIME = {
    "ordering": {"Cap gun": [[1.623, 1.938], [3.382, 3.697]], "Bell": [[0.2, 0.9]]},
    "duration": {"Cat": [1.092], "Cowbell": [5.167]},
    "frequency": {"Paper rustling": [0.89, 4.337, 7.8]},
    "timestamp": {"Dog": [[0.5, 1.5]]},
}


def sound(path, seconds=1.0, level=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, level * np.sin(np.arange(round(8000 * seconds)) / 7), 8000)


def make(folder, name, *more, lists=("list.csv",), capsys=None):
    words = [name, "--list", *(str(folder / each) for each in lists), "--media", str(folder / "media")]
    testset.run(testset.parse([*words, "--out", str(folder / "out"), "--clip", "0.99", *more]))
    return json.loads((folder / "out/summary.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(folder):
    return {path.stem for path in (folder / "out").glob("*.jsonl")}


def check(folder, *names):
    """Every file of prompts is one for generation and for evaluation, and the manifest is one for preparation."""
    for name in names:
        path = folder / f"out/{name}.jsonl"
        assert len(read_prompts(path, {})) == len(read_evaluated_prompts(path))
        assert all(prompt.reference.is_file() for prompt in read_evaluated_prompts(path))
    return read_entries(folder / "out/manifest.jsonl")


def test_audiocaps_has_a_prompt_for_each_caption(tmp_path, capsys):
    (tmp_path / "list.csv").write_text(AUDIOCAPS)
    sound(tmp_path / "media/a/7fmOlUlwoNg_0.wav", 1.02)
    sound(tmp_path / "media/b/Y6BJ455B1aAs.flac", 0.5)
    summary = make(tmp_path, "audiocaps")
    assert written(tmp_path) == {"T2A", "manifest"}
    first, second, third = lines(tmp_path / "out/T2A.jsonl")
    assert (first["out"], first["text"], first["task"]) == (
        "103549.wav", "Constant rattling noise, and sharp vibrations", "T2A",
    )  # fmt: skip
    assert first["seconds"] == 0.99 and second["seconds"] == 0.5  # one clip; a shorter sound keeps its length
    assert second["reference"] == third["reference"] == str(tmp_path / "media/b/Y6BJ455B1aAs.flac")
    entries = check(tmp_path, "T2A")
    assert [entry.captions for entry in entries][1] == ["A rocket flies by", "An engine running, very loud"]
    (row,) = summary["rows"]
    assert row == {
        "prompts": "T2A", "clips": 3, "hours": round((1.02 + 0.5 + 0.5) / 3600, 3), "paper_clips": 4875,
        "paper_hours": 13.5, "difference": "4872 fewer than in the paper",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "AudioCaps" in said and "4872 fewer than in the paper" in said


def test_vggsound_has_three_tasks_and_captions_of_others(tmp_path):
    (tmp_path / "list.csv").write_text(VGGSOUND)
    (tmp_path / "media").mkdir()
    film(tmp_path / "media/---g-f_I2yQ_000001.mp4", 1, sound=np.zeros(44100, np.float32))
    sound(tmp_path / "media/--1DIyQ9Sjk_000012.wav")
    (tmp_path / "captions.jsonl").write_text('{"id": "---g-f_I2yQ_000001", "caption": "Soldiers march past"}\n')
    summary = make(tmp_path, "vggsound", "--captions", str(tmp_path / "captions.jsonl"))
    assert written(tmp_path) == {"T2A", "V2A", "TV2A", "manifest"}
    assert [line["text"] for line in lines(tmp_path / "out/T2A.jsonl")] == [
        "Soldiers march past", "male speech, man speaking",
    ]  # fmt: skip
    (with_video,) = lines(tmp_path / "out/V2A.jsonl")  # the other clip has no pictures
    assert "text" not in with_video and with_video["video"] == with_video["reference"]
    assert lines(tmp_path / "out/TV2A.jsonl")[0]["text"] == "Soldiers march past"
    entries = check(tmp_path, "T2A", "V2A", "TV2A")
    assert entries[1].annotation["category"] == {"male speech, man speaking": None}
    assert [row["clips"] for row in summary["rows"]] == [2, 1, 1]
    assert any("captions of its own" in note for note in summary["notes"])


def test_musiccaps_is_music(tmp_path):
    (tmp_path / "list.csv").write_text(MUSICCAPS)
    sound(tmp_path / "media/[-0Gj8-vB1q4]-[30-40].wav")
    make(tmp_path, "musiccaps")
    (line,) = lines(tmp_path / "out/T2M.jsonl")
    assert line["text"].startswith("The low quality") and line["task"] == "T2M"
    assert check(tmp_path, "T2M")[0].domain == "music"


def test_v2m_has_texts_only_where_they_are_given_and_completions_where_asked_for(tmp_path):
    (tmp_path / "list.txt").write_text("3wkqtzTDGRM\nzxc_-123456\n")
    (tmp_path / "media").mkdir()
    for name in ("3wkqtzTDGRM", "zxc_-123456"):
        film(tmp_path / f"media/{name}.mp4", 2, sound=np.zeros(88200, np.float32))
    (tmp_path / "captions.jsonl").write_text('{"id": "zxc_-123456", "caption": "a calm piano"}\n')
    more = ("--captions", str(tmp_path / "captions.jsonl"), "--prefix", "0.5")
    make(tmp_path, "v2m", *more, lists=["list.txt"])
    completions = {f"completion_{given}" for given in ("M", "M+T", "M+V", "M+T+V")}
    assert written(tmp_path) == {"T2M", "V2M", "TV2M", "manifest"} | completions
    assert [len(lines(tmp_path / f"out/{name}.jsonl")) for name in ("T2M", "V2M", "TV2M")] == [1, 2, 1]
    both = lines(tmp_path / "out/completion_M+T+V.jsonl")[0]
    assert both["prefix"] == 0.5 and both["text"] == "a calm piano" and both["continue_from"] == both["video"]
    assert lines(tmp_path / "out/V2M.jsonl")[0]["seconds"] == pytest.approx(2, abs=0.1)
    check(tmp_path, "T2M", "V2M", "TV2M", *completions)


def test_avvp_has_labels_and_inpainting_where_asked_for(tmp_path):
    (tmp_path / "list.csv").write_text(AVVP)
    (tmp_path / "media").mkdir()
    film(tmp_path / "media/--9O4XZOge4_50_60.mp4", 1, sound=np.zeros(44100, np.float32))
    film(tmp_path / "media/-2hZ6VANwqE.mp4", 1, sound=np.zeros(44100, np.float32))
    sound(tmp_path / "media/wav/-2hZ6VANwqE.wav")
    make(tmp_path, "avvp", "--mask", "0.3-0.7")
    assert lines(tmp_path / "out/TV2A.jsonl")[0]["text"] == "Speech, Basketball bounce"
    filled = lines(tmp_path / "out/inpainting_A+V.jsonl")[1]
    assert filled["audio"].endswith(".wav") and filled["video"].endswith(".mp4") and filled["mask"] == "0.3-0.7"
    assert "text" not in filled and "seconds" not in filled
    entries = check(tmp_path, "V2A", "TV2A", *(f"inpainting_{given}" for given in ("A", "A+T", "A+V", "A+T+V")))
    assert entries[0].annotation["category"] == {"Speech": None, "Basketball bounce": None}
    assert entries[1].audio.endswith(".wav") and entries[1].video


def test_audiotime_has_four_lists_whose_files_share_names(tmp_path):
    for kind, events in AUDIOTIME.items():
        clip = {"syn_1": {"event": events, "caption": f"a caption of {kind}"}}
        (tmp_path / f"test500_{kind}_captions.json").write_text(json.dumps(clip))
        sound(tmp_path / f"media/test500_{kind}/audio/syn_1.wav")
    make(tmp_path, "audiotime", lists=[f"test500_{kind}_captions.json" for kind in AUDIOTIME])
    found = lines(tmp_path / "out/T2A.jsonl")
    assert [line["out"] for line in found] == [f"{kind}_syn_1.wav" for kind in AUDIOTIME]
    assert all(f"test500_{kind}" in line["reference"] for kind, line in zip(AUDIOTIME, found, strict=True))
    ordering, duration, frequency, timestamp = check(tmp_path, "T2A")
    assert [event["event"] for event in ordering.annotation["SED"]] == ["Bell", "Cap gun", "Cap gun"]
    assert frequency.annotation["category"] == {"Paper rustling": 3} and "SED" not in duration.annotation
    assert timestamp.annotation["SED"] == [{"start": 0.5, "end": 1.5, "event": "Dog"}]


def test_clotho_has_five_captions_of_a_sound_and_wavcaps_one(tmp_path):
    (tmp_path / "list.csv").write_text(CLOTHO)
    sound(tmp_path / "media/Santa Motor.wav", 2.5)
    summary = make(tmp_path, "clotho")
    found = lines(tmp_path / "out/T2A.jsonl")
    assert [line["out"] for line in found] == [f"Santa Motor_{i}.wav" for i in range(1, 6)]
    assert {line["seconds"] for line in found} == {2.5} and len(check(tmp_path, "T2A")[0].captions) == 5
    assert summary["rows"][0]["difference"] == "the paper has no number"
    other = tmp_path / "wavcaps"
    (other / "media").mkdir(parents=True)
    (other / "as_final.json").write_text(json.dumps(WAVCAPS))
    sound(other / "media/AudioSet_SL_flac/Y--0w1YA1Hm4.flac")
    summary = make(other, "wavcaps", "--leave-out", lists=["as_final.json"])
    assert summary["notes"][0] == "1 of 2 clips of the list have no media."
    assert lines(other / "out/missing.jsonl") == [{"id": "2219", "reason": "none is called 2219, or the like"}]


def test_every_set_of_the_command_is_known():
    assert set(testset.NAMES) == set(SETS) <= set(READERS)


def refused(folder, name, text, reason, *more, lists=("list.csv",)):
    (folder / "list.csv").write_text(text)
    (folder / "media").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=reason):
        make(folder, name, *more, lists=lists)
    assert not (folder / "out").exists()


def test_wrong_lists_and_media_are_refused_by_name(tmp_path):
    refused(tmp_path, "audiocaps", "a,b\n1,2\n", r"list\.csv: no list of audiocaps as it was published: lacks 'audioca")
    refused(tmp_path, "audiocaps", AUDIOCAPS.replace(",0,", ",zero,"), "could not convert string to float")
    refused(tmp_path, "audiocaps", AUDIOCAPS + AUDIOCAPS.splitlines()[1] + "\n", "'103549' is there twice")
    refused(tmp_path, "vggsound", "a,b,c\n", "line 1 is not youtube_id,second,label,train or test")
    refused(tmp_path, "vggsound", "a,1,c,train\n", "no clip of vggsound in the split 'test'")
    refused(tmp_path, "avvp", "filename\tevent_labels\nabc\tDog\n", "'abc' is not YOUTUBEID_START_END")
    refused(tmp_path, "audiotime", "{}", "its name says none of ordering, duration, frequency and timestamp")
    refused(tmp_path, "wavcaps", '{"data": [{"id": "x"}]}', "lacks 'caption'")
    refused(tmp_path, "wavcaps", "[", "no list of wavcaps")
    refused(
        tmp_path, "audiocaps", AUDIOCAPS, "none.csv: No such file or directory; give the published", lists=["none.csv"]
    )
    refused(tmp_path, "audiocaps", AUDIOCAPS, "3 of 3 clips have no file; --leave-out goes without")
    refused(tmp_path, "audiocaps", AUDIOCAPS, "no clip of audiocaps is there; give the folder", "--leave-out")
    for folder in "ab":
        sound(tmp_path / f"media/{folder}/7fmOlUlwoNg_0.wav")
    refused(tmp_path, "audiocaps", AUDIOCAPS, "could be its file; remove all but one")
    (tmp_path / "media/b/7fmOlUlwoNg_0.wav").unlink()
    (tmp_path / "media/6BJ455B1aAs.wav").write_bytes(b"no sound")
    refused(tmp_path, "audiocaps", AUDIOCAPS, r"2 of 3 clips have no file.*\n +103548: .*6BJ455B1aAs\.wav")
    (tmp_path / "captions.jsonl").write_text('{"id": "who", "caption": "x"}\n')
    refused(
        tmp_path,
        "audiocaps",
        AUDIOCAPS,
        "line 1: .*names no clip of the list",
        "--captions",
        str(tmp_path / "captions.jsonl"),
    )


def test_a_refusal_is_a_sentence_of_the_command(tmp_path):
    said = run_failing(
        "launch/testset.py", "clotho", "--list", tmp_path / "none.csv", "--media", tmp_path, "--out", tmp_path / "out"
    )
    assert said.count("\n") == 1 and "give the published list" in said
