"""Ask a model behind an OpenAI-compatible endpoint, check the answer, and ask again."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import jsonschema
import openai

from ...models import strict
from .prices import Usage

API_KEY_VARIABLE = "OPENAI_API_KEY"
TIME_TOLERANCE = 0.5  # seconds that a time may exceed the length of a clip, because models round


class EndpointDown(Exception):
    """The endpoint gave no answer in several attempts, or none in the API's form; the next question may succeed."""


class AnswerRefused(Exception):
    """No answer to a question was acceptable, and asking again will not help."""


@dataclass(frozen=True)
class Endpoint:
    """rate: requests per minute of all threads, 0 for no limit. attempts: answers per question. retries: failures of a
    request (too many requests, server error, broken connection), with growing pauses.

    Raises ValueError, beginning with the field's name, for a number that cannot be.
    """

    url: str
    model: str
    rate: float = 0.0
    attempts: int = 3
    retries: int = 8
    timeout: float = 120.0  # seconds
    pictures: int = 4  # per clip with video
    longest: float = 60.0  # seconds per clip
    temperature: float = 0.2

    def __post_init__(self) -> None:
        for name in ("timeout", "longest"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name):g} must be above 0, and finite")
        for name in ("rate", "retries", "pictures", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name):g} must be 0 or more, and finite")


class EndpointClient:
    """Asks an endpoint; threads may share it. The key comes from the environment (OPENAI_API_KEY)."""

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

    def ask_json(
        self,
        messages: Sequence[dict[str, Any]],
        schema: dict[str, Any],
        check: Callable[[dict[str, Any]], None],
        spent: Usage | None = None,
    ) -> dict[str, Any]:
        """The JSON object that answers messages of the API. If `schema` or `check` (which raises ValueError) refuses
        it, the model is asked again, with the reason. What is asked is added to `spent`.

        Raises:
            AnswerRefused, EndpointDown: see there.
            ValueError: the endpoint refuses the key or does not know the model, so every question would fail.
        """
        asked: list[Any] = list(messages)
        reason = ""
        for _ in range(self.endpoint.attempts):
            text = self._answer(asked, spent or Usage())
            try:
                answer = _parse_answer(text, schema)
                check(answer)
                return answer
            except ValueError as error:
                reason = str(error)
            asked += [
                {"role": "assistant", "content": text},
                {
                    "role": "user",
                    "content": f"That cannot be used: {reason}. Answer again, with the JSON object alone.",
                },
            ]
        raise AnswerRefused(f"{self.endpoint.attempts} answers were refused, the last one because {reason}")

    def _answer(self, messages: list[Any], spent: Usage) -> str:
        endpoint = self.endpoint
        try:
            reply = self._client.chat.completions.create(
                model=endpoint.model, messages=messages, temperature=endpoint.temperature
            )
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
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EndpointDown(f"its reply is not JSON ({error})") from error
        spent.requests += 1
        usage = getattr(reply, "usage", None)
        spent.read += _tokens(usage, "prompt_tokens")
        spent.written += _tokens(usage, "completion_tokens")
        try:  # the library checks nothing
            text: object = (reply.choices[0].message.content or "") if reply.choices else ""
        except (AttributeError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            raise EndpointDown(f"its reply is no chat completion with a text: {str(reply)[:80]!r}")
        return text


def _tokens(usage: object, name: str) -> int:
    """What the server has counted, 0 if it does not say."""
    count = getattr(usage, name, None)
    return count if isinstance(count, int) else 0


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


def _rate_limiter(rate: float) -> Callable[[], None]:
    """A function that returns at most `rate` times per minute, over all threads."""
    lock, due = Lock(), [0.0]

    def wait() -> None:
        with lock:
            due[0] = max(time.monotonic(), due[0] + 60 / rate)
            pause = due[0] - time.monotonic()
        time.sleep(max(0.0, pause))

    return wait if rate > 0 else lambda: None
