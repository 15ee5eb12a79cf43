"""Weights and adapters on the hub of Hugging Face: found by name, and uploaded.

A name is owner/name or owner/name@revision. HF_ENDPOINT, HF_TOKEN and the hub's cache are huggingface_hub's business.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download

from ...models import strict
from ...models.adapter_files import ADAPTER, ADAPTER_CONFIG
from ..core.credentials import redacted
from ..core.english import amount
from ..core.integrity import MANIFEST, ChangedError, file_fault, read_manifest
from ..pages.tables import Table
from .licences import FILE as LICENSE
from .model_card import CARD, SampleSound, model_card

NAME = re.compile(r"[\w.-]+/[\w.-]+")
LOCATION = re.compile(NAME.pattern + r"(@[\w./-]+)?")
DOWNLOADED = ("*.json", "*.jsonl", "*.safetensors", "*.txt", "*.model", LICENSE)  # no code, no pickles
SOUNDS = "sounds"  # their folder in a repository
SOUND_MANIFEST = "manifest.jsonl"
REASON = 400  # characters of what the hub says


def find_folder(location: Path | str) -> Path:
    """The folder itself, or that of the hub's cache with the files of this name, which are downloaded if they are not
    there. Raises ValueError where it is neither."""
    folder = Path(location)
    if folder.is_dir():
        return folder
    if not LOCATION.fullmatch(str(location)):
        raise ValueError(f"{location} is no folder; give one, or a name on the hub (owner/name or owner/name@revision)")
    name, _, revision = str(location).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*DOWNLOADED]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{location} is no folder here, and no hub gave it ({_reason(error)})") from None


def commit_of(location: Path | str, folder: Path) -> str:
    """The hub's commit of the folder that was found for this location; "" if the location is a folder itself."""
    return "" if Path(location).is_dir() else folder.name  # of the hub's cache: snapshots/COMMIT


def origin(location: Path | str, folder: Path) -> str:
    """What a record says of where files came from: the absolute path of a folder, or a name on the hub and the commit.
    `folder` is the one that was found for this location."""
    commit = commit_of(location, folder)
    return f"{str(location).partition('@')[0]}@{commit}" if commit else os.path.abspath(location)


def upload(
    folder: Path,
    name: str,
    private: bool = False,
    card: Path | None = None,
    tables: Sequence[Table] = (),
    sounds: Path | None = None,
) -> str:
    """Uploads a folder of weights or of an adapter as one commit, with a model card: a generated one, or the text of
    the file `card`. `tables` of an evaluation and the `sounds` of a folder that launch/generate.py has written go into
    it. What else is in the repository stays. Returns the commit's address.

    Raises ValueError where the folder is incomplete or has changed, or the hub refuses.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name on the hub; give owner/name")
    files = _listed_files(folder)
    samples = read_samples(sounds) if sounds else []
    text = model_card(folder, name, tables, samples, card.read_text() if card else None)
    operations = [CommitOperationAdd(path, folder / path) for path in (*files, MANIFEST)]
    operations += [CommitOperationAdd(sample.path, sample.file) for sample in samples]
    operations.append(CommitOperationAdd(CARD, text.encode()))
    with _hub_errors(name):
        api = HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)
        commit = api.create_commit(name, operations, commit_message=f"Upload {folder.resolve().name}")
    return str(commit.commit_url)


def read_samples(folder: Path) -> list[SampleSound]:
    """The sounds of a folder with the prompts that they were made from."""
    samples = []
    try:
        for line in (folder / SOUND_MANIFEST).read_text().splitlines():
            entry = strict.parse_json(line)
            if (file := folder / entry["file"]).is_file():
                samples.append(SampleSound(file, f"{SOUNDS}/{entry['file']}", str(entry["text"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: its {SOUND_MANIFEST} cannot be read ({error}); give a folder that launch/generate.py --prompts "
            f"has written"
        ) from None
    if not samples:
        raise ValueError(f"{folder} has no sounds that its {SOUND_MANIFEST} names")
    return samples


def _listed_files(folder: Path) -> list[str]:
    """Those that a folder's manifest lists, after a comparison with their hashes."""
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder / MANIFEST} is missing; upload a folder that launch/convert.py has written")
    files = read_manifest(folder)["files"]
    if not files.keys() & {"config.json", ADAPTER_CONFIG, ADAPTER}:
        raise ValueError(f"{folder} is a folder neither of weights nor of an adapter")
    for path, entry in files.items():
        if fault := file_fault(folder / path, entry):
            raise ChangedError(f"{fault}; convert the run again with launch/convert.py")
    size = sum(entry["bytes"] for entry in files.values())
    print(f"{folder}: {amount(len(files), 'file')}, {size / 1e6:,.1f} MB", flush=True)
    return sorted(files)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence. It takes its HTTP client's errors from whichever library that
    is, so any error of a network counts."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, ValueError)) and not type(error).__module__.startswith(("http", "requests")):
            raise
        raise ValueError(f"--push {name}: the hub did not take it ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return redacted(str(error).strip()).replace("\n", " ")[:REASON]
