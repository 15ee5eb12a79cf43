"""Prompts that would write elsewhere, compute for years, or end in a traceback: refused before anything is loaded."""

import json

import pytest

from audiox_trainer.launch.generate import main
from audiox_trainer.trainer.core.files import atomic_output
from audiox_trainer.trainer.generation.output_files import assign_files
from audiox_trainer.trainer.generation.prompts import Prompt, parse_prompt, read_prompts


@pytest.mark.parametrize(
    "out",
    [
        "../a.wav",
        "sub/../../a.wav",
        "sub/../a.wav",
        "/etc/a.wav",
        "//etc/a.wav",
        "./../sounds2/a.wav",
        "FOLDER/../a.wav",
        "FOLDER2/a.wav",
        "FOLDER/sub/../../../a.wav",
    ],
)
def test_a_line_writes_into_its_folder_only(tmp_path, out):
    folder = tmp_path / "sounds"
    prompt = Prompt(text="a bell", out=out.replace("FOLDER", str(folder)))
    with pytest.raises(ValueError, match=r"^line 3: out: .* is outside .*sounds; give a name in that folder"):
        assign_files([(3, prompt)], folder, 1)
    if ".." not in out:
        assert assign_files([(None, prompt)], folder, 1), "on the command line the user says where"


@pytest.mark.parametrize("out", ["a.wav", "sub/a.wav", "./a.wav", "..a.wav", "FOLDER/a.wav"])
def test_names_in_the_folder(tmp_path, out):
    (job,) = assign_files([(3, Prompt(text="a bell", out=out.replace("FOLDER", str(tmp_path))))], tmp_path, 1)
    assert job.out.parent.is_relative_to(tmp_path)


HUGE = 10**400
WRONG = [
    ("seconds", 1e9), ("seconds", HUGE), ("seconds", -HUGE), ("seconds", 14_401), ("seconds", 0), ("seconds", "1"),
    ("prefix", 1e9), ("start", HUGE), ("steps", 10**9), ("steps", HUGE), ("steps", 10_001), ("steps", 1.5),
    ("guidance", 1e20), ("guidance", HUGE), ("guidance", 1001), ("guidance", -1), ("seed", HUGE), ("seed", 2**62),
    ("seed", -1), ("seed", True), ("task", "x" * 100_000), ("text", ""), ("text", ["a"]), ("out", " "),
    ("video", "v" * 5000), ("video", "a/" * 5000 + "a"), ("audio", "a\0b"), ("mask", "1" * 5000), ("mask", "0-1e999"),
    ("mask", "nan-nan"), ("continue_from", "\ud800"), ("x" * 100_000, 1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG, ids=range(len(WRONG)))
def test_values_that_are_refused(tmp_path, key, value):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"text": "a bell", "video": None} | {key: value}) + "\n")
    with pytest.raises(ValueError, match="line 1: ") as caught:
        read_prompts(path, {})
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"{", b"3", b"1" * 5000, b"\0"])
def test_lines_that_are_none(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(ValueError, match="line 1: ") as caught:
        read_prompts(path, {})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seconds", "1e9"), "seconds: 1e+09 must be above 0 seconds, and at most 14400"),
        (("--seconds", "1e400"), "seconds: "),
        (("--steps", "1000000000"), "steps: 1000000000; a sampler takes at least 1, and at most 10000"),
        (("--count", "10000000"), "--count at most 10000"),
        (("--guidance", "1e20"), "guidance: 1e+20 must be from 0 to 1000"),
        (("--out", "a" * 300 + ".wav"), "out: aaa"),
        (("--out", "a/" * 3000 + "a.wav"), "out: a/a"),
        (("--out", "a" * 250 + ".mp4"), "give the video"),
        (("--video", "a" * 5000), "video: "),
    ],
)
def test_options_that_are_refused(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["generate.py", "--weights", "w", "--text", "x", "--out", "a.wav", *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_the_longest_name_that_the_disk_takes(tmp_path):
    """The hidden name under which a file is written first is longer than its own."""
    for name in ("a" * 255, "é" * 127):
        with atomic_output(tmp_path / name) as partial:
            partial.write_text("x")
        assert (tmp_path / name).read_text() == "x"


def test_a_prompt_in_python(tmp_path):
    with pytest.raises(ValueError, match="seconds: "):
        parse_prompt({"text": "x", "seconds": HUGE}, tmp_path)
