"""The length of a sound that a prompt asks for, by the headers of its files: sounds of one length are made together."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import av

from ..media.source import MediaError, open_media
from .prompts import Prompt

READERS = 16  # threads; most of their time they wait for a file system


def expected_seconds(prompts: Sequence[Prompt]) -> list[float]:
    """Seconds of each sound, about; 0 where nothing says it, or a file cannot be read."""
    files = {file for prompt in prompts if (file := _deciding_file(prompt))}
    with ThreadPoolExecutor(READERS) as pool:
        declared = dict(zip(files, pool.map(_declared_seconds, files), strict=True))
    found = []
    for prompt in prompts:
        file = _deciding_file(prompt)
        whole = declared[file] if file else 0.0
        found.append(prompt.seconds or max(0.0, whole - (prompt.start if file == prompt.video else 0.0)))
    return found


def _deciding_file(prompt: Prompt) -> str | None:
    """The file whose length the sound has."""
    return None if prompt.seconds else prompt.audio or prompt.vary or prompt.video


def _declared_seconds(file: str) -> float:
    try:
        with open_media(file) as source, source.container() as container:
            return (container.duration or 0) / av.time_base
    except MediaError:  # not an OSError, after which this rank would cut other batches than the others
        return 0.0  # the sound's own turn says what is wrong
