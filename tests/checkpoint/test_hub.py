"""Weights and adapters by name, on a local server that speaks the hub's protocol, by huggingface_hub as it is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from audiox_trainer.models.adapter_files import save_adapter
from audiox_trainer.models.lora import LoraConfig
from audiox_trainer.trainer.checkpoint.hub import find_folder, origin, read_samples, upload
from audiox_trainer.trainer.checkpoint.initial_weights import InitRecord
from audiox_trainer.trainer.checkpoint.licences import CC_BY_NC, write_license
from audiox_trainer.trainer.checkpoint.model_card import model_card
from audiox_trainer.trainer.core.integrity import file_entry, write_manifest
from audiox_trainer.trainer.generation.generator import Generator
from audiox_trainer.trainer.media.mux import write_media
from audiox_trainer.trainer.pages.tables import Cell, Table
from tests.helpers.hub_server import TOKEN, serve

ROOT = Path(__file__).resolve().parents[2]
LAYER = "backbone.latent_out"
WEIGHTS = ("config.json", "model.safetensors", "manifest.json", "LICENSE")
TASKS = {"T2A": 1.0, "V2M": 2.0}


def listed(folder, **about):
    """A folder with a manifest, as launch/convert.py writes it."""
    write_license(folder, CC_BY_NC)
    files = {file.name: file_entry(file) for file in sorted(folder.iterdir()) if file.name != "README.md"}
    write_manifest(folder, {"license": CC_BY_NC, "files": files} | about)
    return folder


@pytest.fixture(scope="module")
def ours(weights, tmp_path_factory):
    """Weights, an adapter for them, and sounds with their prompts."""
    base = tmp_path_factory.mktemp("hub")
    (base / "weights").mkdir()
    for file in weights.iterdir():
        (base / "weights" / file.name).write_bytes(file.read_bytes())
    listed(base / "weights", step=7, weights="ema", dtype="fp32", data=[{"stream": "bells", "tasks": TASKS}])
    (base / "adapter").mkdir()
    rows, columns = load_file(weights / "model.safetensors")[f"{LAYER}.weight"].shape
    tensors = {f"{LAYER}.lora_A": torch.full((2, columns), 0.1), f"{LAYER}.lora_B": torch.full((rows, 2), 0.1)}
    save_adapter(base / "adapter", tensors, LoraConfig(2, targets=(LAYER,)), "me/small")
    listed(base / "adapter", step=3, weights="ema", dtype="fp32", base="me/small@v1", base_commit="0" * 40)
    (base / "sounds").mkdir()
    soundfile.write(base / "sounds" / "1.wav", [0.0] * 100, 16000)
    line = json.dumps({"file": "1.wav", "text": 'a <b>"bell"</b>', "task": "T2A"})
    (base / "sounds" / "manifest.jsonl").write_text(line + "\n")
    return base


def run(hub, *command, token=TOKEN):
    """A process of Python that uses the hub; what it prints shows no token."""
    environment = hub.environment(token)
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert token not in done.stdout + done.stderr
    return done


COMMANDS = """
import json, sys
sys.path.insert(0, ".")
from audiox_trainer.launch import convert, generate
from audiox_trainer.trainer.checkpoint.initial_weights import read_initial_weights
from audiox_trainer.trainer.checkpoint.weights_folder import load_weights

for main, *arguments in json.loads(sys.argv[1]):
    sys.argv = [main, *arguments]
    assert {"convert": convert, "generate": generate}[main].main() == 0
print("found:", read_initial_weights("me/small@v1").commit)
for name in ("me/small", "me/none", "me/small@v9"):
    try:
        load_weights(name)
    except ValueError as error:
        print("refused:", error)
"""


@pytest.mark.slow
def test_what_is_uploaded_is_found_by_name(ours, tmp_path):
    with serve(tmp_path / "cache") as hub:
        push = ("launch/convert.py", ours / "weights", "--push", "me/small")
        refused = run(hub, *push, token="hf_" + "x" * 30)
        assert refused.returncode == 1 and not hub.refs
        assert re.search(
            r"error: --push me/small: the hub did not take it \(.*401.*Invalid credentials", refused.stderr
        )

        pushed = run(hub, *push, "--sounds", ours / "sounds", "--private")
        assert pushed.returncode == 0, pushed.stderr
        commit = hub.refs["me/small"]["main"]
        assert pushed.stdout.splitlines()[-1] == f"{hub.address}/me/small/commit/{commit}"
        files = hub.files("me/small")
        assert files.keys() == {*WEIGHTS, "README.md", "sounds/1.wav"} and hub.private == {"me/small"}
        for name in WEIGHTS:
            assert files[name] == (ours / "weights" / name).read_bytes()
        hub.refs["me/small"]["v1"] = commit
        hub.commit("me/small", {"config.json": b"{}"})  # main goes on, and is broken

        prompts, made = tmp_path / "prompts.jsonl", tmp_path / "made"
        prompts.write_text('{"text": "a bell"}\n')
        commands = [
            ["convert", ours / "adapter", "--push", "me/bells"],
            ["generate", "--weights", "me/small@v1", *("--adapter", "me/bells:0.5", "--prompts", prompts)],
        ]
        commands[1] += ["--out-dir", made]
        done = run(hub, "-c", COMMANDS, json.dumps([[str(word) for word in command] for command in commands]))
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"me/small@v1: licence {CC_BY_NC}" in done.stdout
        entry = json.loads((made / "manifest.jsonl").read_text())
        assert entry["weights"] == f"me/small@{commit}"
        assert entry["adapters"] == [f"me/bells@{hub.refs['me/bells']['main']}:0.5"]
        found, broken, none, no_revision = done.stdout.splitlines()[-4:]
        assert found == f"found: {commit}"
        assert "config.json has 2 bytes, its manifest says" in broken
        assert none.startswith("refused: me/none is no folder here, and no hub gave it (")
        assert no_revision.startswith("refused: me/small@v9 is no folder here, and no hub gave it (")
    generator = Generator(ours / "weights", adapters=[(ours / "adapter", 0.5)])
    write_media(tmp_path / "local.wav", generator.generate(text="a bell"), generator.sample_rate)
    assert (made / "0001.wav").read_bytes() == (tmp_path / "local.wav").read_bytes()
    plain = Generator(ours / "weights").generate(text="a bell")
    assert not torch.equal(plain, generator.generate(text="a bell"))


def test_a_model_card(ours):
    samples = read_samples(ours / "sounds")
    card = model_card(ours / "weights", "me/small", (), samples)
    metadata = card.split("---\n")[1]
    assert metadata == (
        'library_name: "audiox-trainer"\npipeline_tag: "text-to-audio"\n'
        'tags: ["audio", "text-to-audio", "video-to-music"]\nlicense: "cc-by-nc-4.0"\n'
    )
    for line in (
        "| tasks | T2A, V2M |",
        "| data | bells |",
        "| training | 7 steps; ema weights in fp32 |",
        "| sampling | euler, 2 steps, guidance 2 |",
        "| licence | CC-BY-NC-4.0, see LICENSE |",
        'python launch/generate.py --weights me/small --text "a dog barks" --out dog.wav',
    ):
        assert line in card
    assert '- a &lt;b&gt;&quot;bell&quot;&lt;/b&gt;<br><audio controls src="https://' in card
    assert model_card(ours / "weights", "me/small", (), (), "# Mine\n") == "# Mine\n"
    adapter = model_card(ours / "adapter", "me/bells")
    assert 'base_model: "me/small"\nbase_model_relation: "adapter"\n' in adapter
    assert "--weights me/small@v1 --adapter me/bells" in adapter and "LoRA of rank 2 on 1 layer" in adapter


def test_an_evaluation_in_the_card(ours):
    table = Table("T2A-bench", "100 prompts.", ("", "FD | ↓"), [[Cell("mine"), Cell("3.20", "3.0–3.4")]])
    card = model_card(ours / "weights", "me/small", [table])
    assert card.endswith(
        "## Evaluation\n\n**T2A-bench**\n\n|  | FD \\| ↓ |\n|---|---|\n| mine | 3.20 [3.0–3.4] |\n\n100 prompts.\n"
    )


def test_what_is_not_uploaded(ours, tmp_path):
    for name in ("small", "me/small@v1", "me/small/x", ""):
        with pytest.raises(ValueError, match="is no name on the hub; give owner/name"):
            upload(ours / "weights", name)
    with pytest.raises(ValueError, match=r"manifest\.json is missing; upload a folder that launch/convert\.py has"):
        upload(tmp_path, "me/small")
    with pytest.raises(ValueError, match=r"its manifest\.jsonl cannot be read"):
        upload(ours / "weights", "me/small", sounds=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    listed(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    with pytest.raises(ValueError, match=r"config\.json has 3 bytes, its manifest says 2; convert the run again"):
        upload(tmp_path, "me/small")
    (tmp_path / "config.json").unlink()
    write_manifest(tmp_path, {"files": {"LICENSE": file_entry(tmp_path / "LICENSE")}})
    with pytest.raises(ValueError, match="is a folder neither of weights nor of an adapter"):
        upload(tmp_path, "me/small")


def test_what_a_record_says(ours, tmp_path, monkeypatch):
    monkeypatch.chdir(ours)
    assert find_folder("weights") == Path("weights")
    assert origin("weights", Path("weights")) == os.path.abspath(ours / "weights")
    assert origin("me/small@v1", tmp_path / "snapshots" / "abc") == "me/small@abc"
    (line,) = InitRecord("me/small@v1", "12", 3, commit="abc").lines()
    assert line == "begins from me/small@v1 (commit abc, xxh3 12): 3 tensors loaded"
