"""The length of a file as its header says it, without decoding."""

from pathlib import Path

import av

from .source import MediaError, Reason, open_media


def header_seconds(path: Path) -> float:
    """The length of a file's sound, or of the whole file where its track does not say.

    Raises MediaError where it is missing, cannot be opened, has no sound, or says no length.
    """
    with open_media(path) as source, source.container() as container:
        if not container.streams.audio:
            raise MediaError(Reason.NO_AUDIO, f"{path}: has no sound")
        track = container.streams.audio[0]
        if track.duration and track.time_base:
            return float(track.duration * track.time_base)
        if container.duration:
            return float(container.duration / av.time_base)
    raise MediaError(Reason.UNDECODABLE, f"{path}: does not say how long it is")
