"""Licences of weights that come from elsewhere: they stay with whatever is made from them."""

from pathlib import Path

FILE = "LICENSE"
CC_BY_NC = "CC-BY-NC-4.0"
TEXTS = {
    CC_BY_NC: """\
These weights are those of AudioX-Turbo, or were trained from them. Its authors (NoizAI/AudioX-Turbo,
HKUSTAudio/AudioX-Turbo) released them under the Creative Commons Attribution-NonCommercial 4.0 International licence
(CC BY-NC 4.0):

    https://creativecommons.org/licenses/by-nc/4.0/legalcode

They may be used, shared and adapted for purposes that are not commercial, with credit to the authors, who say that
their models are watermarked.

Changes: the tensors were renamed and are stored in other files, and may have been trained further.
"""
}


def write_license(folder: Path, license: str) -> None:
    """Writes the file of a licence."""
    (folder / FILE).write_text(TEXTS.get(license, f"{license}\n"))
