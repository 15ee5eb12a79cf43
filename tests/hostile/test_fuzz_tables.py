"""Files around the paper's tables that are nearly right: rows, reports, prompts, published lists, events."""

import json
import math

import pytest

from audiox_trainer.trainer.pages.tables import as_latex, as_markdown, as_text
from audiox_trainer.trainer.paper.bench_prompts import bench_lines, generation_lines, read_bench
from audiox_trainer.trainer.paper.event_detectors import file_detector
from audiox_trainer.trainer.paper.steam import read_steam_lists
from audiox_trainer.trainer.paper.tables import as_table, build_tables
from audiox_trainer.trainer.paper.tables_file import read_tables_file
from audiox_trainer.trainer.sets.published_lists import read_list
from tests.helpers.fuzzing import both, changed_bytes, changed_json, refusal

RESULT = {"sounds": "turbo", "metric": "FD", "better": "lower", "value": 1.5, "low": 1.0, "high": 2.0}
REPORT = {"results": [RESULT, RESULT | {"sounds": "base", "metric": "KL"}]}
LATENCY = {"model": "turbo", "steps": 4, "nfe": 4, "latency_s_mean": 0.1, "latency_s_std": 0.01, "rtf": 0.01}
ROW = {"table": "II", "dataset": "D", "steps": 4, "method": "m", "sounds": "turbo", "reports": ["a.json", "l.json"]}
TABLES = {"rows": [ROW, ROW | {"table": "A.8", "reports": ["a.json"]}], "metrics": {"FD": "FD"}, "title": "T"}
BENCH = [
    {"id": "a", "kind": "count", "text": "A dog barks twice.", "events": ["dog", "dog"]},
    {"id": "b", "kind": "timestamp", "text": "A bell from 1 to 2 s.", "events": ["bell"], "start": 1, "end": 2},
    {"id": "c", "kind": "order", "text": "A bell, then a dog.", "events": ["bell", "dog"]},
]
LISTS = {
    "audiocaps": b'audiocap_id,youtube_id,start_time,caption\n1,7fmOlUlwoNg,0,"a noise, and another"\n2,abc,20,x\n',
    "vggsound": b'---g-f_I2yQ,1,people marching,test\n--1DIyQ9Sjk,12,"speech, man",test\n',
    "avvp": b"filename\tevent_labels\n--9O4XZOge4_50_60\tSpeech,Dog\n-2hZ6VANwqE_30_40\tDog\n",
    "clotho": b"file_name,caption_1,caption_2,caption_3,caption_4,caption_5\na.wav,a,b,c,d,e\n",
    "audioset": b"segment_id\tstart_time_seconds\tend_time_seconds\tlabel\na_b_30000\t2.6\t7.2\t/m/1\nc_0\t0\t1\t/m/1",
    "wavcaps": b'{"data": [{"id": "Ya.wav", "caption": "x"}, {"id": "2219", "caption": "y"}]}',
    "mucaps": b'{"a.mp3": "a calm piano", "b.mp3": "drums"}',
}
AUDIOTIME = {"syn_1": {"event": {"Bell": [[0.2, 0.9], [1.5, 2.0]], "Dog": [[3.0, 4.0]]}, "caption": "a bell, a dog"}}
EVENTS = {"id": "ordering_syn_1", "events": [{"event": "Bell", "start": 0.2, "end": 0.9}]}
REASONS = (
    "unknown key", "is not allowed", "missing", "make the report first", "no report of", "has no sounds", "name one of",
    "no column", "another report", "two rows", "must be", "not JSON", "belongs to", "must all differ", "there twice",
    "as it was published", "no clip of", "no id with", "no line has", "at least", "embedded null",
)  # fmt: skip


def write(path, value):
    path.write_text(json.dumps(value))


def attempt_tables(folder, tables, report):
    write(folder / "tables.json", tables)
    write(folder / "a.json", report)
    write(folder / "l.json", {"efficiency": [LATENCY]})
    try:
        built = build_tables(read_tables_file(folder / "tables.json"), folder)
    except ValueError as error:
        return refusal(error, REASONS, "tables.json", "a.json", "l.json", "rows:", str(folder))
    shown = [as_table(table) for table in built]
    for table, each in zip(built, shown, strict=True):
        for row in table.rows:
            assert all(math.isfinite(figure.value) for figure in row.figures.values())
        assert all(len(cells) == len(each.headings) for cells in each.rows)
        for write_as in (as_text, as_markdown, as_latex):
            write_as(each).encode()
    return ""


def attempt_bench(folder, lines):
    path = folder / "bench.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        prompts = read_bench(path)
    except ValueError as error:
        return refusal(error, REASONS, "bench.jsonl")
    path.write_text(bench_lines(prompts))
    assert read_bench(path) == prompts
    assert all("/" not in json.loads(line)["out"] for line in generation_lines(prompts).splitlines())
    return ""


def attempt_list(folder, name, data):
    path = folder / "list.csv"
    path.write_bytes(data)
    (folder / "mid_to_display_name.tsv").write_text("/m/1\tBell\n")
    try:
        clips = read_list(name, [path])
    except ValueError as error:
        return refusal(error, REASONS, "list.csv", "list of")
    assert len({clip.id for clip in clips}) == len(clips) > 0 and all(clip.names for clip in clips)
    return ""


def attempt_audiotime(folder, captions, events):
    path = folder / "ordering.json"
    write(path, captions)
    (folder / "events.jsonl").write_text(json.dumps(events) + "\n")
    try:
        read_list("audiotime", [path])
        clips = read_steam_lists([path])
        for clip in clips:
            file_detector("events.jsonl")(folder / "x.wav", clip.id, clip.asked.names)
    except ValueError as error:
        return refusal(error, REASONS, "ordering.json", "AudioTime", "audiotime", "events.jsonl")
    for clip in clips:
        for spans in clip.asked.spans.values():
            assert all(0 <= start <= end < math.inf for start, end in spans)
    return ""


@both
def test_rows(fuzzer, share, tmp_path):
    assert all(fuzzer.run("tables", changed_json(TABLES), 60 * share, lambda t: attempt_tables(tmp_path, t, REPORT)))


@both
def test_reports(fuzzer, share, tmp_path):
    inputs = changed_json(REPORT)
    assert all(fuzzer.run("reports", inputs, 60 * share, lambda report: attempt_tables(tmp_path, TABLES, report)))


@both
def test_bench(fuzzer, share, tmp_path):
    assert all(fuzzer.run("T2A-bench", changed_json(BENCH), 40 * share, lambda lines: attempt_bench(tmp_path, lines)))


@both
@pytest.mark.parametrize("name", LISTS)
def test_lists(fuzzer, share, tmp_path, name):
    inputs = changed_bytes(LISTS[name], most=2)
    assert all(fuzzer.run("published lists", inputs, 10 * share, lambda data: attempt_list(tmp_path, name, data)))


@both
def test_audiotime(fuzzer, share, tmp_path):
    inputs = changed_json({"captions": AUDIOTIME, "events": EVENTS})

    def attempt(both):
        if not isinstance(both, dict):
            return "no object"
        return attempt_audiotime(tmp_path, both.get("captions"), both.get("events"))

    assert all(fuzzer.run("AudioTime", inputs, 50 * share, attempt))
