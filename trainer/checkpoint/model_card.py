"""The model card of weights or an adapter on the hub: what it is, how it is used, how it scores and sounds."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_url
from safetensors import safe_open

from ...models import strict
from ...models.adapter_files import ADAPTER, ADAPTER_CONFIG
from ...models.audiox import WEIGHTS, SamplingConfig
from ...models.config import CodecConfig
from ...models.sampler import sampling_words
from ..core.integrity import read_manifest
from ..core.tasks import TASKS
from ..pages.tables import Table, as_markdown
from .licences import FILE as LICENSE

CARD = "README.md"
LIBRARY = "audiox-trainer"
PIPELINE = "text-to-audio"


@dataclass(frozen=True)
class SampleSound:
    """A sound that the card plays."""

    file: Path
    path: str  # in the repository
    text: str  # of its prompt


def model_card(
    folder: Path, name: str, tables: Sequence[Table] = (), samples: Sequence[SampleSound] = (), text: str | None = None
) -> str:
    """Markdown with the hub's metadata in front. `text` replaces everything but the evaluation and the sounds."""
    sections = [_generated(folder, name) if text is None else text.rstrip()]
    if tables:
        sections.append("## Evaluation\n\n" + "\n\n".join(as_markdown(table) for table in tables))
    if samples:
        sections.append("## Sounds\n\n" + "\n".join(_sound(name, sample) for sample in samples))
    return "\n\n".join(sections) + "\n"


def _generated(folder: Path, name: str) -> str:
    manifest, adapter = read_manifest(folder), (folder / ADAPTER).exists()
    tasks = sorted({task for stream in manifest.get("data", ()) for task in stream["tasks"]}, key=list(TASKS).index)
    metadata = _metadata(manifest, adapter, tasks)
    facts = [*_size(folder, adapter), *_training(manifest, tasks)]
    if license := manifest.get("license"):
        facts.append(("licence", f"{license}, see {LICENSE}"))
    what = "An adapter for a multimodal audio generator." if adapter else "A multimodal audio generator."
    parts = [
        f"---\n{metadata}---",
        f"# {name.partition('/')[2]}",
        f"{what} It was made with {LIBRARY}.",
        "| | |\n|---|---|\n" + "\n".join(f"| {key} | {html.escape(value)} |" for key, value in facts),
        f"## Use\n\n```bash\n{_command(manifest, name, adapter)}\n```",
    ]
    return "\n\n".join(parts)


def _metadata(manifest: dict[str, Any], adapter: bool, tasks: Sequence[str]) -> str:
    """The YAML block of the hub. Values are written as JSON, which YAML contains."""
    tags = {f"{'video' if TASKS[task].video else 'text'}-to-{TASKS[task].domain}" for task in tasks}
    data: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": PIPELINE, "tags": sorted({"audio", *tags})}
    if license := manifest.get("license"):
        data["license"] = license.lower()
    if base := _hub_base(manifest):
        data |= {"base_model": base.partition("@")[0], "base_model_relation": "adapter" if adapter else "finetune"}
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in data.items())


def _hub_base(manifest: dict[str, Any]) -> str:
    """The name on the hub that training began from, or ""."""
    return str(manifest["base"]) if manifest.get("base_commit") else ""


def _size(folder: Path, adapter: bool) -> list[tuple[str, str]]:
    with safe_open(folder / (ADAPTER if adapter else WEIGHTS), "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]
    count = sum(map(math.prod, shapes))
    facts = [("parameters", f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}")]
    if adapter:
        about = strict.parse_json((folder / ADAPTER_CONFIG).read_bytes())
        return [*facts, ("adapter", f"LoRA of rank {about['r']} on {len(about['target_modules'])} layers")]
    config = strict.parse_json((folder / "config.json").read_bytes())
    codec: CodecConfig = strict.parse(CodecConfig, config["model"]["codec"], "model.codec")
    facts.append(("clip", f"{codec.seconds:.3f} s at {codec.sample_rate} Hz, channels: {codec.audio_channels}"))
    if sampling := config.get("sampling"):
        facts.append(("sampling", sampling_words(strict.parse(SamplingConfig, sampling, "sampling"))))
    return facts


def _training(manifest: dict[str, Any], tasks: Sequence[str]) -> list[tuple[str, str]]:
    facts = [("began from", base)] if (base := _hub_base(manifest)) else []
    if tasks:
        facts.append(("tasks", ", ".join(tasks)))
        facts.append(("data", ", ".join(stream["stream"] for stream in manifest["data"])))
    if "step" in manifest:
        facts.append(("training", f"{manifest['step']:,} steps; {manifest['weights']} weights in {manifest['dtype']}"))
    return facts


def _command(manifest: dict[str, Any], name: str, adapter: bool) -> str:
    weights = (_hub_base(manifest) or "WEIGHTS") + f" --adapter {name}" if adapter else name
    return " ".join(("python", "launch/generate.py", "--weights", weights, '--text "a dog barks" --out dog.wav'))


def _sound(name: str, sample: SampleSound) -> str:
    address = html.escape(hf_hub_url(name, sample.path))
    return f'- {html.escape(sample.text)}<br><audio controls src="{address}"></audio>'
