"""The paper's tables from reports: which figure goes where, what is best, what the paper prints, what is refused."""

import json
import re

import numpy as np
import pytest
import soundfile

from audiox_trainer.launch import tables as command
from audiox_trainer.trainer.paper.layout import LAYOUTS
from audiox_trainer.trainer.paper.tables import PUBLISHED, as_table, build_tables
from audiox_trainer.trainer.paper.tables_file import read_tables_file
from tests.helpers.run_script import run_failing

QUALITY = ("KL", "IS", "FD", "FAD", "PC", "PQ", "CLAP", "AV")


def sound_report(path, **systems):
    """A report of `launch/evaluate.py --sounds`: figures by folder and metric, intervals of ± 0.1."""
    rows = [
        {"sounds": name, "metric": metric, "better": "lower", "value": value, "low": value - 0.1, "high": value + 0.1}
        for name, figures in systems.items()
        for metric, value in figures.items()
    ]
    path.write_text(json.dumps({"folders": {name: name for name in systems}, "results": rows, "scorers": []}))


def latency_report(path, *rows):
    keys = ("model", "steps", "nfe", "latency_s_mean", "latency_s_std", "rtf")
    path.write_text(json.dumps({"efficiency": [dict(zip(keys, row, strict=True)) for row in rows]}))


def build(folder, *rows, **more):
    (folder / "tables.json").write_text(json.dumps({"rows": rows, **more}))
    return build_tables(read_tables_file(folder / "tables.json"), folder)


def test_every_table_gets_its_figures(tmp_path):
    quality = dict(zip(QUALITY, range(1, 9), strict=True))
    sound_report(tmp_path / "a.json", ours=quality | {"AlignAcc": 0.5, "DeSync": -0.2})
    sound_report(tmp_path / "t2a.json", ours=dict.fromkeys(("Cat-acc", "Cnt-acc", "Ord-acc", "TS-acc"), 0.25))
    sound_report(tmp_path / "steam.json", ours={"Ordering": 0.5, "Duration": 1.0, "Frequency": 2.0, "Timestamp": 0.75})
    latency_report(tmp_path / "latency.json", ("turbo", 4, 4, 0.25, 0.002, 0.025))
    about = {
        "I": {"task": "T2A", "dataset": "AudioCaps"},
        "II": {"dataset": "AudioCaps", "steps": 4},
        "III": {},
        "A.4": {"task": "V2A"},
        "A.5": {},
        "A.6": {"dataset": "AVVP", "conditions": "A+V"},
        "A.7": {"conditions": "M+T"},
        "A.8": {"task": "V2A"},
    }
    reports = {"II": ["a.json", "latency.json"], "III": ["t2a.json", "steam.json"]}
    rows = [{"table": t, "method": "ours", "reports": reports.get(t, ["a.json"]), **keys} for t, keys in about.items()]
    tables = build(tmp_path, *rows, published=False)
    assert [table.number for table in tables] == list(LAYOUTS) == list(about)
    found = {table.number: {name: f.value for name, f in table.rows[0].figures.items()} for table in tables}
    assert found["I"] == {"KL": 1, "IS": 2, "FD": 3, "FAD": 4, "PC": 5, "PQ": 6, "Align.": 7}
    assert found["II"] == found["I"] | {"Latency (s)": 0.25, "RTF": 0.025}
    assert tables[1].rows[0].keys == {"dataset": "AudioCaps", "steps": 4, "nfe": 4}
    assert found["III"] == {"Cat-acc": 0.25, "Cnt-acc": 0.25, "Ord-acc": 0.25, "TS-acc": 0.25} | {
        "Ordering": 0.5,
        "Duration": 1.0,
        "Frequency": 2.0,
        "Timestamp": 0.75,
    }
    assert found["A.4"]["Align."] == found["A.8"]["Align."] == 8  # with the video
    assert found["A.5"] == {"KL": 1, "IS": 2, "FD": 3, "FAD": 4, "AlignAcc": 0.5, "AVSync": -0.2}
    assert found["A.6"] == {"IS": 2, "FAD": 4}


def test_a_row_takes_what_is_its_own(tmp_path):
    """The latency of its own weights, and the alignment with what its sounds follow."""
    sound_report(
        tmp_path / "a.json", base={"FD": 1.0, "AV": 0.3, "CLAP": 0.2}, turbo={"FD": 2.0, "AV": 0.4, "CLAP": 0.1}
    )
    latency_report(tmp_path / "latency.json", ("base", 50, 100, 2.0, 0.1, 0.2), ("turbo", 4, 4, 0.1, 0.01, 0.01))
    both = {"reports": ["a.json", "latency.json"], "table": "II", "dataset": "D"}
    (table,) = build(tmp_path, {"method": "turbo", "sounds": "turbo", "steps": 4, **both}, published=False)
    assert table.rows[0].figures["RTF"].value == 0.01
    with pytest.raises(ValueError, match="has no latency at 4 steps; it has 50"):
        build(tmp_path, {"method": "base", "sounds": "base", "steps": 4, **both}, published=False)
    own = {"sounds": "base", "reports": ["a.json"]}
    rows = [{"table": "A.7", "method": given, "conditions": given, **own} for given in ("M", "M+V")]
    rows.append({"table": "A.8", "method": "base", **own})
    tables = build(tmp_path, *rows, published=False)
    align = {row.method: row.figures["Align."].value for table in tables for row in table.rows}
    assert align == {"M": 0.2, "M+V": 0.3, "base": 0.3}


def test_the_best_two_of_a_group_are_marked(tmp_path):
    sound_report(tmp_path / "a.json", x={"KL": 1, "IS": 9, "AVSync": -0.1}, y={"KL": 2, "IS": 9, "AVSync": 0.2})
    sound_report(tmp_path / "b.json", z={"KL": 3, "IS": 8, "AVSync": 0.3})
    row = {"task": "V2A", "reports": ["a.json"]}
    rows = [
        {"table": "A.4", "method": "x", "sounds": "x", **row},
        {"table": "A.4", "method": "y", "sounds": "y", **row},
        {"table": "A.4", "method": "z", "task": "V2A", "reports": ["b.json"]},
        {"table": "A.4", "method": "alone", "task": "TV2A", "reports": ["b.json"]},
    ]
    (table,) = build(tmp_path, *rows)
    ranks = {row.method: row.ranks for row in table.rows}
    assert ranks == {"x": {"KL": 1, "IS": 1}, "y": {"KL": 2, "IS": 1}, "z": {"IS": 2}, "alone": {}}
    (nearest,) = build(tmp_path, *({**r, "table": "A.5"} for r in rows[:3]))
    assert {row.method: row.ranks["AVSync"] for row in nearest.rows if "AVSync" in row.ranks} == {"x": 1, "y": 2}


def test_what_the_paper_prints_stands_beside(tmp_path):
    printed = json.loads(PUBLISHED.read_text())["rows"]
    assert len(printed) == 5 * 4 + 5 + 4 * 4 + 5
    for row in printed:  # NFE, and RTF of a clip of 10 s
        assert row["nfe"] == row["steps"] * (1 if row["method"] == "AudioX-Turbo" else 2)
        assert row["figures"]["RTF"] == pytest.approx(row["figures"]["Latency (s)"][0] / 10, abs=0.0051)
    sound_report(tmp_path / "a.json", ours={"FD": 1.0})
    (table,) = build(
        tmp_path, {"table": "II", "dataset": "MusicCaps", "steps": 4, "method": "ours", "reports": ["a.json"]}
    )
    assert len(table.rows) == 1 + 21 and table.rows[-1].method == "ours" and not table.rows[-1].ranks
    turbo = next(row for row in table.rows if row.method == "AudioX-Turbo")
    assert (turbo.figures["FD"].value, turbo.figures["Latency (s)"].std) == (9.50, 0.002)
    shown = as_table(table)
    assert "AudioX-Turbo (paper)" in [cells[0].text for cells in shown.rows] and "not ranked" in shown.note


def test_reports_on_weights_of_the_scenes_are_read_too(tmp_path):
    results = {f"{key}{end}": 0.5 for key in ("cat_acc", "cnt_acc", "ord_acc", "ts_acc", "fd", "kl", "is")
               for end in ("", "_low", "_high")}  # fmt: skip
    latency = {"model": "tiny", "steps": 4, "nfe": 8, "latency_s_mean": 0.1, "latency_s_std": 0.01, "rtf": 0.05}
    report = {"models": [], "results": [{"model": "tiny", "nfe": 8, **results}], "efficiency": [latency]}
    (tmp_path / "both.json").write_text(json.dumps(report))
    row = {"method": "tiny", "reports": ["both.json"]}
    quality, instructions = build(
        tmp_path, {"table": "III", **row}, {"table": "II", "dataset": "scenes", "steps": 4, **row}
    )
    assert set(quality.rows[0].figures) == {"Latency (s)", "RTF", "KL", "IS", "FD"}
    assert quality.rows[0].keys["nfe"] == 8 and len(instructions.rows[0].figures) == 4


def test_the_command_writes_page_markdown_latex_and_json(tmp_path, capsys):
    sound_report(tmp_path / "a.json", x={"FD": 1.5, "KL": 2.0}, y={"FD": 2.5, "KL": 1.0})
    for name in ("true", "x_y & co"):
        soundfile.write(tmp_path / f"{name}.wav", 0.3 * np.sin(np.arange(8000) / 9), 8000)
    row = {"table": "I", "task": "T2A", "dataset": "AudioCaps", "reports": ["a.json"]}
    rows = [row | {"method": "x_y & co", "sounds": "x", "ours": True}, row | {"method": "<y>", "sounds": "y"}]
    players = [{"text": "a bell", "sounds": {"reference": "true.wav", "x": "x_y & co.wav"}}]
    (tmp_path / "tables.json").write_text(json.dumps({"rows": rows, "players": players, "title": "Mine"}))
    command.run(command.parse([str(tmp_path / "tables.json"), "--out", str(tmp_path / "out")]))
    said = capsys.readouterr().out
    assert "Table I: Quality by task and set" in said and "1.50 [1.40 to 1.60]" in said
    page = (tmp_path / "out/tables.html").read_text()
    assert page.count("<audio") == 2 and "&lt;y&gt;" in page and 'class="rank1">1.50' in page and "Mine" in page
    markdown = (tmp_path / "out/tables.md").read_text()
    assert "**1.50**" in markdown and "<u>2.50</u>" in markdown and "&lt;y&gt;" in markdown
    latex = (tmp_path / "out/tables.tex").read_text()
    assert r"x\_y \& co & T2A & AudioCaps & \underline{2.00} & \textbf{1.50} \\" in latex
    assert r"\begin{tabular}{lrrrr}" in latex and r"FD $\downarrow$" in latex
    (found,) = json.loads((tmp_path / "out/tables.json").read_text())["tables"]
    assert found["rows"][0]["figures"]["FD"] == {"value": 1.5, "low": 1.4, "high": 1.6}


ROW = {"table": "III", "method": "x", "reports": ["a.json"]}
REFUSED = [
    ({"rows": []}, "rows"),
    ({"rows": [{**ROW, "table": "IV"}]}, "'IV' is not allowed"),
    ({"rows": [{**ROW, "table": "I"}]}, "missing; a row of Table I needs task and dataset"),
    ({"rows": [ROW], "metrics": {"FDD": "FD"}}, "'FDD' is no column"),
    ({"rows": [{**ROW, "sound": "x"}]}, "did you mean sounds?"),
    ({"rows": [{**ROW, "reports": ["none.json"]}]}, "none.json: no such file or directory; make the report first"),
    ({"rows": [{**ROW, "reports": ["broken.json"]}]}, "broken.json:1:2: not JSON"),
    ({"rows": [{**ROW, "reports": ["other.json"]}]}, "other.json: no report of launch/evaluate.py"),
    ({"rows": [{**ROW, "reports": ["half.json"]}]}, "half.json: no report of launch/evaluate.py"),
    ({"rows": [ROW]}, "a.json: has x and y; name one of them in the row, as `sounds`"),
    ({"rows": [{**ROW, "sounds": "z"}]}, "a.json: has no sounds 'z'; it has x and y"),
    ({"rows": [{**ROW, "sounds": "x"}]}, "the reports of x have no column of Table III; they have FD"),
    ({"rows": [{**ROW, "sounds": "x", "reports": ["a.json", "a.json"]}]}, "another report of the same row has FD too"),
    ({"rows": [{**ROW, "table": "II", "dataset": "D", "steps": 9, "reports": ["latency.json"]}]}, "at 9 steps; it has"),
    ({"rows": [{**ROW, "table": "A.8", "sounds": "x"}] * 2}, "Table A.8 has two rows of x"),
]


@pytest.mark.parametrize(("file", "reason"), REFUSED, ids=[reason[:40] for _, reason in REFUSED])
def test_a_wrong_file_or_report_is_one_sentence(file, reason, tmp_path):
    sound_report(tmp_path / "a.json", x={"FD": 1.0}, y={"FD": 2.0})
    latency_report(tmp_path / "latency.json", ("x", 4, 4, 0.1, 0.01, 0.01))
    (tmp_path / "broken.json").write_text("{,")
    (tmp_path / "other.json").write_text('{"rows": 3}')
    (tmp_path / "half.json").write_text('{"results": [{"metric": "FD", "sounds": "x"}]}')
    (tmp_path / "tables.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match=re.escape(reason)):
        build_tables(read_tables_file(tmp_path / "tables.json"), tmp_path)


def test_a_missing_file_or_sound_ends_the_command_with_a_sentence(tmp_path):
    said = run_failing("launch/tables.py", tmp_path / "none.json", "--out", tmp_path / "out")
    assert said.count("\n") == 1 and "none.json: no such file or directory; give the file with the rows" in said
    sound_report(tmp_path / "a.json", x={"FD": 1.0})
    players = [{"text": "a bell", "sounds": {"x": "none.wav"}}]
    rows = [{"table": "A.8", "method": "x", "reports": ["a.json"]}]
    (tmp_path / "tables.json").write_text(json.dumps({"rows": rows, "players": players}))
    said = run_failing("launch/tables.py", tmp_path / "tables.json", "--out", tmp_path / "out")
    assert said.count("\n") == 1 and "none.wav" in said and "give a sound that can be played" in said
    assert not (tmp_path / "out/tables.html").exists()
