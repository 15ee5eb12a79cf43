"""T2A-bench through an endpoint: prompts that it writes, and sounds that it judges in two steps."""

import json
import shutil

import pytest
import soundfile
import torch
from tqdm import tqdm

from audiox_trainer.launch import t2a_bench
from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.models.config import CodecConfig
from audiox_trainer.models.encoders.build import build_codec
from audiox_trainer.trainer.evaluation.judge_training import render_scenes
from audiox_trainer.trainer.evaluation.t2a_benchmark import T2ABench
from audiox_trainer.trainer.evaluation.t2a_prompts import TOLERANCE
from audiox_trainer.trainer.generation.prompts import read_prompts
from audiox_trainer.trainer.paper.bench_prompts import METRICS, InstructionPrompt, bench_lines, read_bench
from audiox_trainer.trainer.paper.bench_writer import prompt_groups
from audiox_trainer.trainer.scenes.scene import SAMPLE_RATE
from tests.helpers.hearing_server import HearingServer, serving
from tests.helpers.run_script import run_failing

PER_TYPE = 6


class Sounds:
    """A model whose sounds are known, in the order of the prompts."""

    def __init__(self, waves):
        self.by_number = waves

    def latents(self, request, seed, sampling=None):
        return self.by_number[seed : seed + len(request.texts)]

    def waves(self, latents):
        return latents


@pytest.fixture(scope="module")
def bench(judge):
    return T2ABench(judge, build_codec(CodecConfig("logmel", 8000, 1, 2048, 8, 16)), PER_TYPE, seed=0)


@pytest.fixture(scope="module")
def folder(bench, tmp_path_factory):
    """Prompts as a file, and sounds of two systems: true scenes, and those with every second one exchanged."""
    top = tmp_path_factory.mktemp("t2a")
    prompts = [
        InstructionPrompt(
            f"{p.kind}_{i}", p.kind, p.text, p.order,
            *((p.events[0].onset, p.events[0].offset) if p.kind == "timestamp" else ()),
        )
        for i, p in enumerate(bench.prompts)
    ]  # fmt: skip
    (top / "bench.jsonl").write_text(bench_lines(prompts))
    true = (render_scenes([p.scene for p in bench.prompts]).clamp(-1, 1) * 32767).round() / 32768  # as 16 bits have it
    mixed = torch.where((torch.arange(len(true)) % 2 == 0)[:, None, None], true, true.roll(3, 0))
    for name, waves in (("true", true), ("mixed", mixed)):
        (top / name).mkdir()
        for prompt, wave in zip(prompts, waves, strict=True):
            soundfile.write(top / name / f"{prompt.id}.wav", (wave[0] * 32768).short().numpy(), SAMPLE_RATE)
    return top, {"true": true, "mixed": mixed}


def run(folder, url, out, *more, sounds=("true", "mixed"), bench="bench.jsonl"):
    words = ["judge", "--bench", str(folder / bench), "--sounds", *(str(folder / name) for name in sounds)]
    words += ["--out", str(out / "t2a.json"), "--endpoint", url, "--model", "ears", "--tolerance", str(TOLERANCE)]
    t2a_bench.judge(t2a_bench.parse([*words, "--retries", "0", *more]))
    return json.loads((out / "t2a.json").read_text())


def embedded(bench, waves, name):
    with tqdm(disable=True) as bar:
        return bench.run(Sounds(waves), name, SamplingConfig(steps=1), bar).row


@pytest.mark.slow
def test_the_figures_through_http_are_those_of_the_embedded_benchmark(bench, folder, judge, tmp_path, capsys):
    top, waves = folder
    server = HearingServer(judge, bench.prompts)
    with serving(server) as url:
        report = run(top, url, tmp_path, "--price", "1", "10")
        values = {(row["sounds"], row["metric"]): row for row in report["results"]}
        for name in ("true", "mixed"):
            row = embedded(bench, waves[name], name)
            for key, metric in zip(("cat_acc", "cnt_acc", "ord_acc", "ts_acc"), METRICS.values(), strict=True):
                found = values[name, metric]
                assert (found["value"], found["low"], found["high"]) == (
                    row[key],
                    row[f"{key}_low"],
                    row[f"{key}_high"],
                )
        assert values["mixed", "Cat-acc"]["value"] < values["true", "Cat-acc"]["value"]
        assert values["true", "Cat-acc"]["prompts"] == 4 * PER_TYPE and values["true", "TS-acc"]["prompts"] == PER_TYPE
        # Each sound is annotated once, though the second folder has no other; so are equal decisions.
        different = len({wave.numpy().tobytes() for each in waves.values() for wave in each})
        assert server.asked["annotate"] == different < 8 * PER_TYPE
        lines = [json.loads(line) for line in (tmp_path / "t2a.json.judgments.jsonl").read_text().splitlines()]
        texts = {prompt.id: (prompt.kind, prompt.text) for prompt in read_bench(top / "bench.jsonl")}
        asked = {(texts[row["id"]], json.dumps(row["annotation"])) for row in lines}
        assert len(lines) == 8 * PER_TYPE and server.asked["decide"] == len(asked) < len(lines)
        assert server.sent_rates == {SAMPLE_RATE}
        before = server.asked.copy()
        again = run(top, url, tmp_path)
        assert server.asked == before and {**again, "created": ""} == {**report, "created": ""}
    assert len(report["differences"]) == 4 and {row["against"] for row in report["differences"]} == {"true"}
    said = capsys.readouterr().out
    assert f"at most {different} sounds to annotate" in said and "Cat-acc ↑" in said
    assert "at most 0 sounds to annotate" in said  # the second time


@pytest.mark.slow
def test_an_annotation_does_not_know_the_prompt(bench, folder, judge, tmp_path):
    """The same sounds under other prompts are decided again, not heard again."""
    top, _ = folder
    server = HearingServer(judge, bench.prompts)
    shutil.copytree(top / "true", tmp_path / "renamed/true")
    lines = [json.loads(line) for line in (top / "bench.jsonl").read_text().splitlines()]
    for kind in METRICS:  # texts of a kind move on by one
        own = [line for line in lines if line["kind"] == kind]
        moved = [{k: v for k, v in line.items() if k != "id"} for line in own[1:] + own[:1]]
        for line, other in zip(own, moved, strict=True):
            name = line["id"]
            line.clear()
            line.update({"id": name, **other})
    (tmp_path / "renamed/bench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with serving(server) as url:
        run(top, url, tmp_path, sounds=["true"])
        heard, decided = server.asked["annotate"], server.asked["decide"]
        run(tmp_path / "renamed", url, tmp_path, sounds=["true"])
        assert server.asked["annotate"] == heard and server.asked["decide"] > decided


@pytest.mark.slow
def test_what_cannot_be_judged_is_named_and_left_out_only_if_asked_for(bench, folder, judge, tmp_path):
    top, _ = folder
    shutil.copytree(top / "true", tmp_path / "true")
    shutil.copy(top / "bench.jsonl", tmp_path)
    (tmp_path / "true/category_0.wav").unlink()
    server = HearingServer(judge, bench.prompts)
    with serving(server) as url:
        with pytest.raises(ValueError, match=r"1 sound cannot be judged.*\n +true: category_0: missing"):
            run(tmp_path, url, tmp_path, sounds=["true"])
        assert not server.asked
        (tmp_path / "true/category_1.wav").write_bytes(b"no sound")
        server.refuse["annotate"] = 3  # all attempts at the first sound
        report = run(tmp_path, url, tmp_path, "--leave-out", "--concurrency", "1", sounds=["true"])
        assert report["judged"] == 4 * PER_TYPE - 3
        reasons = {row["id"]: row["reason"] for row in report["left_out"]}
        assert reasons["category_0"] == "missing" and "category_1" in reasons and len(reasons) == 3
        assert any("3 answers were refused" in reason for reason in reasons.values())
        report = run(tmp_path, url, tmp_path, "--leave-out", "--again", sounds=["true"])
        assert report["judged"] == 4 * PER_TYPE - 2  # the refused one was asked about again


@pytest.mark.slow
def test_the_price_is_known_before_anything_is_asked(bench, folder, judge, tmp_path, capsys):
    top, _ = folder
    server = HearingServer(judge, bench.prompts)
    with serving(server) as url:
        run_words = ("--price", "1000000", "0", "--audio-tokens", "0")
        t2a_bench_out = tmp_path / "t2a.json"
        words = [
            "judge",
            "--bench",
            str(top / "bench.jsonl"),
            "--sounds",
            str(top / "true"),
            "--out",
            str(t2a_bench_out),
        ]
        words += ["--endpoint", url, "--model", "ears", *run_words]
        t2a_bench.judge(t2a_bench.parse([*words, "--estimate"]))
        assert not server.asked and not t2a_bench_out.exists()
        assert f"{4 * PER_TYPE} decisions" in capsys.readouterr().out
        with pytest.raises(ValueError, match="--at-most 2: without a price nothing is above it"):
            t2a_bench.judge(t2a_bench.parse([*words, "--price", "0", "0", "--at-most", "2"]))
        with pytest.raises(ValueError, match=r"--at-most 2: the estimate is \d+\.\d\d; nothing was asked"):
            t2a_bench.judge(t2a_bench.parse([*words, "--at-most", "2"]))
        assert not server.asked
        server.down = True
        with pytest.raises(ValueError, match="gave no answer to 10 sounds in a row"):
            run(top, url, tmp_path, sounds=["true"])


def write(out, url, *more):
    words = ["prompts", "--endpoint", url, "--model", "pen", "--out", str(out), "--per-count", "20", *more]
    t2a_bench.write_prompts(t2a_bench.parse(words))
    return read_bench(out / "bench.jsonl")


def test_prompts_are_written_once_in_the_right_numbers(tmp_path, capsys):
    assert sum(group.count for group in prompt_groups(100)) == 2000
    server = HearingServer()
    with serving(server) as url:
        server.refuse["write"] = 1  # is asked again
        found = write(tmp_path / "t2a", url)
        assert len(found) == 400 and len({prompt.text for prompt in found}) == 400
        for kind in METRICS:
            sizes = [len(prompt.events) for prompt in found if prompt.kind == kind]
            assert len(sizes) == 100
            if kind in ("category", "count"):
                assert all(sizes.count(size) == 20 for size in range(1, 6))
        assert {len(p.events) for p in found if p.kind == "order"} == {2, 3}
        assert all((p.start, p.end) == (1.0, 2.5) for p in found if p.kind == "timestamp")
        lines = read_prompts(tmp_path / "t2a/prompts.jsonl", {})
        assert [prompt.text for _, prompt in lines] == [prompt.text for prompt in found]
        assert lines[0][1].out == f"{found[0].id}.wav" == "category_0001.wav"
        before = server.asked["write"]
        (tmp_path / "again").mkdir()
        shutil.copy(tmp_path / "t2a/prompts.answers", tmp_path / "again")
        assert write(tmp_path / "again", url) == found and server.asked["write"] == before  # from the answers
        with pytest.raises(ValueError, match="exists already"):
            write(tmp_path / "again", url)
    t2a_bench.write_prompts(
        t2a_bench.parse(["prompts", "--bench", str(tmp_path / "t2a/bench.jsonl"), "--out", str(tmp_path / "copy")])
    )
    assert (tmp_path / "copy/prompts.jsonl").read_text() == (tmp_path / "t2a/prompts.jsonl").read_text()


def test_a_model_that_repeats_itself_is_refused(tmp_path, monkeypatch):
    server = HearingServer()
    monkeypatch.setattr(server, "write", lambda asked: {"prompts": [{"text": "a bell", "events": ["bell"]}]})
    with (
        serving(server) as url,
        pytest.raises(ValueError, match=r"wrote 1 different prompts of type category with 1 in"),
    ):
        write(tmp_path / "t2a", url, "--concurrency", "1")


LINE = {"id": "a", "kind": "count", "text": "A dog barks twice.", "events": ["dog", "dog"]}
WRONG = [
    ({**LINE, "events": ["dog", "cat"]}, r"events: \['dog', 'cat'\] must be one sound in a prompt of kind count"),
    ({**LINE, "kind": "order"}, "must all differ in a prompt of kind order"),
    ({**LINE, "kind": "order", "events": ["dog"]}, "1 in an order prompt; expected two or three"),
    ({**LINE, "kind": "timestamp", "events": ["dog"], "start": 3, "end": 2}, "a start, and an end after it"),
    ({**LINE, "start": 1}, "belongs to timestamp prompts"),
    ({**LINE, "kind": "how"}, "'how' is not allowed"),
    ({**LINE, "id": "../a"}, "id: "),
    ({**LINE, "events": ["dog"] * 6}, "events: "),
]


@pytest.mark.parametrize(("line", "reason"), WRONG, ids=[reason[:30] for _, reason in WRONG])
def test_wrong_prompts_are_refused_by_line(line, reason, tmp_path):
    (tmp_path / "bench.jsonl").write_text(json.dumps(LINE) + "\n" + json.dumps({**line, "id": line["id"] + "2"}) + "\n")
    with pytest.raises(ValueError, match=rf"(?s)bench\.jsonl: 1 of 2 lines is wrong\n  line 2: .*{reason}"):
        read_bench(tmp_path / "bench.jsonl")


def test_a_missing_file_is_a_sentence(tmp_path):
    said = run_failing(
        "launch/t2a_bench.py", "judge", "--bench", tmp_path / "none.jsonl", "--sounds", tmp_path, "--out",
        tmp_path / "out.json", "--endpoint", "http://127.0.0.1:1/v1", "--model", "ears",
    )  # fmt: skip
    assert said.count("\n") == 1 and "none.jsonl: no such file or directory; make the prompts with" in said
