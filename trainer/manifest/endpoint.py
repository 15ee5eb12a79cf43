"""Ask a model behind an OpenAI-compatible endpoint about a clip, check the answer, and ask again."""

import base64
import copy
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import jsonschema
import numpy as np
import openai
import soundfile
from PIL import Image

from ...models import strict
from ...models.config import CodecConfig
from ..media.audio_decode import SoundSegment, decode_all
from ..media.source import open_media
from ..media.video_decode import FrameReader
from .manifest import AUDIO_FIELDS, MUSIC_FIELDS, ManifestEntry, line_schema

API_KEY_VARIABLE = "OPENAI_API_KEY"
SOUND_CODEC = CodecConfig(
    "logmel", sample_rate=16_000, audio_channels=1, hop=160, frames=1, latent_channels=1
)  # what models hear
PICTURE_SIZE = 336  # pixels, height and width
TIME_TOLERANCE = 0.5  # seconds that a time may exceed the length of a clip, because models round
FIELDS = {"audio": ("caption", *AUDIO_FIELDS), "music": ("caption", *MUSIC_FIELDS)}
PROMPT = """You annotate recordings for training a model that makes sound. Listen, and answer with one JSON object that
has exactly the keys you are asked for, and nothing else. Say what you hear, not what you suppose; a key that the
recording does not settle gets null.

caption: one sentence that describes everything that is heard.
category: an object of sound names with how often each is heard, {"dog bark": 2, "rain": null}; null for sounds that
are continuous or cannot be counted.
SED: a list of {"start": seconds, "end": seconds, "event": name}, in order of time, seconds from the start.
time_relation: the names in the order in which they are heard, between commas, or a word such as "interleave".
genre, mood: a few words each. instruments: a list of names. tempo: beats per minute, a number."""


class EndpointDown(Exception):
    """The endpoint gave no answer in several attempts; the next clip may succeed."""


class AnswerRefused(Exception):
    """No answer to a clip was acceptable, and asking again will not help."""


class ClipTooLong(Exception):
    """A clip is too long to be sent to a model."""


@dataclass(frozen=True)
class Endpoint:
    """rate: requests per minute of all threads, 0 for no limit. attempts: answers per clip. retries: failures of a
    request (too many requests, server error, broken connection), with growing pauses."""

    url: str
    model: str
    rate: float = 0.0
    attempts: int = 3
    retries: int = 8
    timeout: float = 120.0  # seconds
    pictures: int = 4  # per clip with video
    longest: float = 60.0  # seconds per clip


class EndpointClient:
    """Asks an endpoint about clips; threads may share it. The key comes from the environment (OPENAI_API_KEY)."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        pace = _rate_limiter(endpoint.rate)
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=os.environ.get(API_KEY_VARIABLE) or "none",  # private servers often need none
            max_retries=endpoint.retries,
            timeout=endpoint.timeout,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [lambda request: pace()]}),
        )

    def ask(
        self, entry: ManifestEntry, fields: Sequence[str], check: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """The fields of a clip, None for those the model cannot tell. If the schema or `check` (which raises
        ValueError) refuses an answer, the model is asked again, with the reason.

        Raises:
            AnswerRefused, ClipTooLong, EndpointDown: see there.
            MediaError: the clip cannot be read.
            ValueError: the endpoint refuses the key or does not know the model, so every clip would fail.
        """
        content, seconds = _message_content(entry, fields, self.endpoint)
        schema = answer_schema(fields, seconds)
        messages: list[Any] = [{"role": "system", "content": PROMPT}, {"role": "user", "content": content}]
        reason = ""
        for _ in range(self.endpoint.attempts):
            text = self._answer(messages)
            try:
                answer = _parse_answer(text, schema)
                check(answer)
                return answer
            except ValueError as error:
                reason = str(error)
            messages += [
                {"role": "assistant", "content": text},
                {
                    "role": "user",
                    "content": f"That cannot be used: {reason}. Answer again, with the JSON object alone.",
                },
            ]
        raise AnswerRefused(f"{self.endpoint.attempts} answers were refused, the last one because {reason}")

    def _answer(self, messages: list[Any]) -> str:
        try:
            reply = self._client.chat.completions.create(model=self.endpoint.model, messages=messages, temperature=0.2)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ValueError(
                f"{self.endpoint.url} refuses the key; set {API_KEY_VARIABLE} in the environment ({error})"
            ) from error
        except openai.NotFoundError as error:
            raise ValueError(f"{self.endpoint.url} knows no model {self.endpoint.model!r} ({error})") from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise AnswerRefused(f"the endpoint does not take the request ({error})") from error
        except openai.APIError as error:
            raise EndpointDown(f"{type(error).__name__}: {error}") from error
        return (reply.choices[0].message.content or "") if reply.choices else ""


def answer_schema(fields: Sequence[str], seconds: float) -> dict[str, Any]:
    """The schema of an answer about a clip of this length: each field as in the manifest, or null."""
    schema = copy.deepcopy(line_schema())
    for name in ("start", "end"):
        schema["$defs"]["Event"]["properties"][name]["maximum"] = round(seconds + TIME_TOLERANCE, 2)
    return {
        "type": "object",
        "properties": {field: {"anyOf": [{"type": "null"}, schema["properties"][field]]} for field in fields},
        "required": list(fields),
        "additionalProperties": False,
        "$defs": schema["$defs"],
    }


def _parse_answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON object in an answer, without the text around it. Raises ValueError with the reason of a refusal."""
    begin, end = text.find("{"), text.rfind("}")
    if begin < 0 or end < begin:
        raise ValueError(f"it holds no JSON object: {text[:80]!r}")
    try:
        answer = strict.parse_json(text[begin : end + 1])
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(answer))
    if problem is not None:
        raise ValueError(f"{problem.json_path.removeprefix('$.')}: {problem.message[:200]}")
    return dict(answer)


def _message_content(
    entry: ManifestEntry, fields: Sequence[str], endpoint: Endpoint
) -> tuple[list[dict[str, Any]], float]:
    """The parts of the message for the API, and the clip's seconds."""
    with open_media(entry.audio, entry.allow_private) as source:
        try:
            wave = decode_all(source, SOUND_CODEC, SoundSegment(entry.start, entry.end), endpoint.longest)
        except ValueError as error:
            raise ClipTooLong(f"{error}: give it as segments with start and end") from error
    seconds = wave.shape[1] / SOUND_CODEC.sample_rate
    file = io.BytesIO()
    soundfile.write(file, wave[0], SOUND_CODEC.sample_rate, format="WAV", subtype="PCM_16")
    known = {key: value for key, value in (entry.annotation | {"captions": entry.captions}).items() if key != "extra"}
    said = json.dumps({key: value for key, value in known.items() if value})
    text = f"A recording of {seconds:.2f} s. Known already: {said}. Give the keys {', '.join(fields)}."
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts.append({"type": "input_audio", "input_audio": {"data": _base64(file.getvalue()), "format": "wav"}})
    if entry.video and endpoint.pictures:
        places = (np.arange(endpoint.pictures) + 0.5) / endpoint.pictures
        with FrameReader(entry.video, PICTURE_SIZE, entry.start, allow_private=entry.allow_private) as reader:
            pictures = reader.nearest([reader.begin + entry.start + seconds * float(place) for place in places])
        for picture in pictures:
            image = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(image, "JPEG", quality=85)
            address = f"data:image/jpeg;base64,{_base64(image.getvalue())}"
            parts.append({"type": "image_url", "image_url": {"url": address}})
    return parts, seconds


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _rate_limiter(rate: float) -> Callable[[], None]:
    """A function that returns at most `rate` times per minute, over all threads."""
    lock, due = Lock(), [0.0]

    def wait() -> None:
        with lock:
            due[0] = max(time.monotonic(), due[0] + 60 / rate)
            pause = due[0] - time.monotonic()
        time.sleep(max(0.0, pause))

    return wait if rate > 0 else lambda: None
