"""Requests that a user may make, and the messages for those that are refused."""

import json
from typing import get_args

import pytest

from audiox_trainer.trainer.core.tasks import TASKS, TaskName
from audiox_trainer.trainer.generation.output_files import assign_files
from audiox_trainer.trainer.generation.prompts import Prompt, parse_prompt, read_prompts


def test_the_tasks_are_those_of_training():
    assert get_args(TaskName) == tuple(TASKS)


@pytest.mark.parametrize(
    ("keys", "kind", "words"),
    [
        ({"text": "a bell"}, "T2A/T2M", "a bell"),
        ({"text": "a bell", "task": "T2A"}, "T2A", "a bell"),
        ({"text": "slow piano music", "task": "T2M"}, "T2M", "slow piano music"),
        ({"video": "v"}, "V2A", TASKS["V2A"].default_text),
        ({"video": "v", "task": "V2M"}, "V2M", TASKS["V2M"].default_text),
        ({"video": "v", "text": TASKS["V2M"].default_text}, "V2M", TASKS["V2M"].default_text),
        ({"video": "v", "text": "a bell"}, "TV2A/TV2M", "a bell"),
        ({"video": "v", "text": "a waltz", "task": "TV2M"}, "TV2M", "a waltz"),
        ({"audio": "a", "mask": "0-1"}, "inpainting", TASKS["inpainting"].default_text),
        ({"audio": "a", "mask": "0-1", "text": "a bell", "video": "v"}, "inpainting", "a bell"),
        ({"continue_from": "a"}, "completion", TASKS["completion"].default_text),
        ({"continue_from": "a", "task": "completion", "video": "v"}, "completion", TASKS["completion"].default_text),
    ],
)
def test_conditions_say_the_task_and_its_text(keys, kind, words):
    prompt = Prompt(**keys)
    assert (prompt.task_label, prompt.full_text) == (kind, words)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({}, "^text: there is no condition"),
        ({"text": " "}, "^text: empty"),
        ({"audio": "a"}, "^mask: audio and mask belong together"),
        ({"text": "x", "mask": "1-2"}, "^mask: audio and mask belong together"),
        ({"audio": "a", "mask": "soon"}, "^mask: 'soon' is not START-END"),
        ({"audio": "a", "mask": "2-1"}, "^mask: '2-1': the end must lie after the start"),
        ({"audio": "a", "mask": "nan-1"}, "^mask: 'nan-1'"),
        ({"audio": "a", "mask": "0-1", "continue_from": "b"}, "^audio: .*mutually exclusive; give one of them"),
        ({"audio": "a", "mask": "0-1", "seconds": 3.0}, "^seconds: a sound with a hole keeps its length"),
        ({"text": "x", "prefix": 1.0}, "^prefix: .* give that file"),
        ({"text": "x", "follow": True}, "^follow: .* give that file"),
        ({"continue_from": "a", "prefix": 0.0}, "^prefix: 0 must be above 0"),
        ({"text": "x", "start": 1.0}, "^start: .* give the video"),
        ({"video": "v", "start": -1.0}, "^start: -1 must be 0 seconds or more"),
        ({"text": "x", "seconds": float("inf")}, "^seconds: inf"),
        ({"text": "x", "steps": 0}, "^steps: 0"),
        ({"text": "x", "guidance": -1.0}, "^guidance: -1"),
        ({"text": "x", "guidance_interval": "0.9"}, "^guidance_interval: '0.9' is not LOWEST-HIGHEST of noise levels"),
        ({"text": "x", "guidance_interval": "0.9-0.1"}, "^guidance_interval: '0.9-0.1' is not LOWEST-HIGHEST"),
        ({"text": "x", "seed": -1}, "^seed: -1"),
        ({"text": "x", "negative": ""}, "^negative: empty"),
        ({"video": "v", "loop": True}, "^loop: .* has ends; leave one of the two out"),
        ({"continue_from": "a", "loop": True}, "^loop: .* has ends; leave one of the two out"),
        ({"text": "x", "loudness": 1.0}, "^loudness: 1 must be from -60 to 0 LUFS"),
        ({"text": "x", "loudness": float("nan")}, "^loudness: nan"),
        ({"vary": "a"}, "^text: there is no condition"),
        ({"text": "x", "level": 0.5}, "^level: .*give vary"),
        ({"text": "x", "vary": "a", "level": 1.0}, "^level: 1 must be between 0 and 1"),
        ({"text": "x", "vary": "a", "continue_from": "b"}, "^vary: .*leave audio and continue_from out"),
        ({"text": "x", "task": "V2A"}, "^task: V2A needs video"),
        ({"video": "v", "text": "x", "task": "V2A"}, "^task: V2A has no text"),
        ({"video": "v", "task": "TV2A"}, "^task: TV2A needs text"),
        ({"text": "x", "video": "v", "task": "T2M"}, "^task: T2M has no video"),
        ({"continue_from": "a", "task": "inpainting"}, "^task: inpainting needs mask"),
        ({"audio": "a", "mask": "0-1", "task": "completion"}, "^task: completion needs continue_from"),
        ({"text": "x", "audio": "a", "mask": "0-1", "task": "T2A"}, "^task: T2A has no mask"),
    ],
)
def test_what_does_not_fit_together_is_refused(keys, complaint):
    with pytest.raises(ValueError, match=complaint):
        Prompt(**keys)


def test_paths_start_from_a_folder_and_must_be_files(tmp_path):
    (tmp_path / "v.mp4").write_text("")
    assert parse_prompt({"video": "v.mp4"}, tmp_path).video == str(tmp_path / "v.mp4")
    assert parse_prompt({"video": str(tmp_path / "v.mp4")}, tmp_path / "elsewhere").video == str(tmp_path / "v.mp4")
    for keys, complaint in (
        ({"video": "w.mp4"}, "video: .*w.mp4: no such file"),
        ({"video": str(tmp_path)}, "not a file"),
        ({"texts": "a bell"}, "texts: unknown key .*allowed: text, video"),
        ({"text": 3}, "text: 3 is not allowed; expected a string"),
        ({"text": "x", "task": "T2B"}, "task: 'T2B' is not allowed; expected 'T2A' or"),
        ({"text": "x", "seed": 1.5}, "seed: 1.5 is not allowed; expected an integer"),
    ):
        with pytest.raises(ValueError, match=complaint):
            parse_prompt(keys, tmp_path)


def write_lines(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_lines_have_their_own_seed_and_what_all_share(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", {"text": "a"}, "", {"text": "b", "seed": 7, "steps": 3}, {"text": "c"})
    read = read_prompts(path, {"steps": 9, "seed": 100})
    assert [line for line, _ in read] == [1, 3, 4]
    assert [(p.text, p.seed, p.steps) for _, p in read] == [("a", 100, 9), ("b", 7, 3), ("c", 103, 9)]


def test_all_wrong_lines_are_named_at_once(tmp_path):
    lines = ({"text": "a"}, "{", ["a"], {"txt": "a"}, {"video": "none.mp4"}, {"text": "b"})
    with pytest.raises(ValueError) as caught:
        read_prompts(write_lines(tmp_path / "p.jsonl", *lines), {})
    message = str(caught.value).splitlines()
    assert "4 of 6 lines are wrong; nothing was generated" in message[0]
    expected = (
        "line 2: not JSON",
        "line 3: b'[\"a\"]' is not an",
        "line 4: txt: unknown key",
        "line 5: video: ",
    )
    assert all(found.strip().startswith(e) for found, e in zip(message[1:], expected, strict=True)), message
    with pytest.raises(ValueError, match="and 15 more"):
        read_prompts(write_lines(tmp_path / "q.jsonl", *["x"] * 25), {})
    with pytest.raises(ValueError, match="has no line"):
        read_prompts(write_lines(tmp_path / "r.jsonl", ""), {})
    with pytest.raises(ValueError, match="No such file"):
        read_prompts(tmp_path / "s.jsonl", {})


def test_a_table_is_read_as_lines_are(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('\ufefftext,seed,guidance,out\n"a bell, then ""two"" kicks",,2.5,\n,,,\nb,7,,b.wav\n')
    read = read_prompts(path, {"steps": 9, "seed": 100})
    assert [(line, p.text, p.seed, p.guidance, p.steps, p.out) for line, p in read] == [
        (2, 'a bell, then "two" kicks', 101, 2.5, 9, None),
        (4, "b", 7, None, 9, "b.wav"),
    ]
    path.write_text("text,loop\na,True\nb,false\nc,\n")
    assert [p.loop for _, p in read_prompts(path, {})] == [True, False, False]
    for text, complaint in (
        ("text,seed\na,soon\n", "line 2: seed: 'soon' is no number"),
        ("text,seed\na,1,2\n", "line 2: 1 cells more than the first line has keys"),
        ("words\na\n", "line 2: words: unknown key"),
        ("text,guidance\na,nan\n", "line 2: guidance: "),
        ("text,loop\na,yes\n", "line 2: loop: 'yes' is neither true nor false"),
        ("text\n", "has no line; expected keys in its first line"),
        ('text\n"a\n', "not CSV in UTF-8"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=complaint):
            read_prompts(path, {})
    path.write_bytes(b"text\n\xff\n")
    with pytest.raises(ValueError, match="not CSV in UTF-8"):
        read_prompts(path, {})


def test_files_are_named_by_their_line_and_each_has_one_sound(tmp_path):
    prompts = [(2, Prompt(text="a")), (11, Prompt(text="b", out="sub/b.flac", seed=5))]
    jobs = assign_files(prompts, tmp_path, 1)
    assert [str(job.out.relative_to(tmp_path)) for job in jobs] == ["0002.wav", "sub/b.flac"]
    jobs = assign_files(prompts, tmp_path, 2)
    assert [job.out.name for job in jobs] == ["0002-1.wav", "0002-2.wav", "b-1.flac", "b-2.flac"]
    assert [job.prompt.seed for job in jobs] == [0, 1, 5, 6]
    (tmp_path / "in.wav").write_text("")
    given = str(tmp_path / "in.wav")
    for prompt, complaint in (
        (Prompt(text="b", out="0002.wav"), "line 3: out: .* is also the file of line 2"),
        (Prompt(text="b", out="x.aac"), "line 3: out: .*only .wav"),
        (Prompt(text="b", out="x.mp4"), "line 3: out: .*give the video"),
        (Prompt(text="b", out=str(tmp_path)), "line 3: out: .*a folder"),
        (Prompt(continue_from=given, out="in.wav"), "line 3: out: .*is an input of this sound"),
    ):
        with pytest.raises(ValueError, match=complaint):
            assign_files([prompts[0], (3, prompt)], tmp_path, 1)
