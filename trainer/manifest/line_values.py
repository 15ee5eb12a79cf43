"""The values of a manifest's line: texts, times, sound events, captions with their source and kind."""

from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

LARGEST = 1e9  # seconds, counts, beats per minute: more is a mistake
_CLOCK = r"([0-9]{1,2}:)?[0-9]{1,3}:[0-5]?[0-9](\.[0-9]+)?"  # minutes and seconds, or with hours
SPAN = rf"^\s*{_CLOCK}\s*[-–]\s*{_CLOCK}\s*$"  # as in the paper: 00:02-00:06


def _whole_number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# The description of a key says what a wrong value should have been: in messages, and in the schema for editors.
Text = Annotated[str, Field(pattern=r"\S", description="a text that is not empty")]
Location = Annotated[str, Field(pattern=r"^[^\x00]*[^\s\x00][^\x00]*$", description="a path or an address")]
Seconds = Annotated[float, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(_whole_number)]


@with_config(ConfigDict(extra="forbid", strict=True))
class Event(TypedDict):
    start: Seconds
    end: Seconds
    event: Text


def _in_order(event: Event) -> Event:
    if event["end"] < event["start"]:
        raise ValueError("the event ends before it starts")
    return event


def _from_span(event: dict[str, str]) -> Event:
    """The paper's form of an event, {"00:02-00:06": name}."""
    ((span, name),) = event.items()
    start, end = (_clock_seconds(time) for time in span.replace("–", "-").split("-"))
    return _in_order({"start": start, "end": end, "event": name})


def _clock_seconds(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


TimedEvent = (
    Annotated[Event, AfterValidator(_in_order)]
    | Annotated[
        dict[Annotated[str, Field(pattern=SPAN)], Text],
        Field(min_length=1, max_length=1, json_schema_extra={"additionalProperties": False}),
        AfterValidator(_from_span),
    ]
)


@with_config(ConfigDict(extra="forbid", strict=True))
class SourcedCaption(TypedDict):
    text: Text
    source: NotRequired[Text]  # who wrote it: the name of a model, or of a data set
    kind: NotRequired[Text]  # what it is about


class Origin(NamedTuple):
    """The source and the kind of a caption; by default of one that a manifest has as a plain text."""

    source: str = "manifest"
    kind: str = "caption"


TEMPLATE = "template"  # the source of sentences from annotation
PLACED_KINDS = frozenset(("count", "time", "order"))  # of captions that are true of a whole segment only


def caption_origin(annotated: Any) -> Origin:
    """That of a line's `caption`: `annotated` names the model that filled each field, if one did."""
    by = annotated.get("caption") if isinstance(annotated, dict) else None
    return Origin(by) if isinstance(by, str) and by else Origin()
