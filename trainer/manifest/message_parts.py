"""Sound and pictures as parts of a message to a model, in the form of the OpenAI API."""

import base64
import io
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from ..media.audio_decode import Wave


def sound_part(wave: Wave, rate: int) -> dict[str, Any]:
    """A sound (n,): a wav of 16 bits, exact where it had no more."""
    file = io.BytesIO()
    samples = (wave * 32768).round().clip(-32768, 32767).astype(np.int16)
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return {"type": "input_audio", "input_audio": {"data": _base64(file.getvalue()), "format": "wav"}}


def picture_part(picture: NDArray[np.uint8]) -> dict[str, Any]:
    """A picture (3, height, width): a JPEG."""
    image = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(image, "JPEG", quality=85)
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_base64(image.getvalue())}"}}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
