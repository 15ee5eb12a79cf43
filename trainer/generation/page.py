"""The page of launch/app.py: a prompt, a video and a sound go in, and sounds of several weights come out."""

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL.Image import Image

from ..core.cli import sentence
from ..media.mux import check_writable, write_media
from ..pages.embedded_media import spectrogram_picture
from .clip_sampler import Done
from .generator import Generator
from .long_form import LongSound
from .prompts import VARIATION_LEVEL, Prompt, parse_prompt

TITLE = "Sound from text, video and sound"
USES = {"vary it": "vary", "continue it": "continue_from", "fill a hole in it": "audio"}  # of a given sound
PLAYED = (".mp4", ".webm")  # containers that browsers play
HOUR = 3600
CSS = ".spectrogram img {width: 100% !important; height: 100% !important; object-fit: fill !important}"

Report = Callable[[float, str], object]  # how much is done, from 0 to 1, and what is being done
PlayedSound = tuple[int, NDArray[np.int16]]


@dataclass(frozen=True)
class PageLimits:
    """What a visitor may ask for."""

    seconds: float = 30.0  # of sound
    steps: int = 100
    upload_mb: int = 100
    waiting: int = 32  # visitors


@dataclass(frozen=True)
class Form:
    """What a visitor has filled in. The fields are the page's inputs, in their order."""

    weights: Sequence[str]
    text: str
    negative: str
    video: str | None
    sound: str | None
    use: str  # a key of USES
    mask: str
    level: float
    seconds: float | None  # None or 0, which an empty field gives: as it would be without
    steps: float | None  # the same
    guidance: float | None  # the same
    seed: float | None
    loop: bool

    def prompt(self) -> Prompt:
        """Raises ValueError where the fields do not fit together."""
        keys: dict[str, Any] = {
            "text": self.text.strip() or None,
            "negative": self.negative.strip() or None,
            "video": self.video,
            "seconds": self.seconds or None,
            "steps": int(self.steps or 0) or None,
            "guidance": self.guidance or None,
            "seed": int(self.seed or 0),
            "loop": self.loop,
        }
        if self.sound:
            keys[USES[self.use]] = self.sound
            if "audio" in keys:
                keys["mask"] = self.mask.strip() or None
            if "vary" in keys:
                keys["level"] = self.level
        return parse_prompt({key: value for key, value in keys.items() if value is not None}, Path())


@dataclass(frozen=True)
class Answer:
    """The sound of one set of weights."""

    sound: PlayedSound
    spectrogram: Image
    about: str
    film: str | None  # the video with the sound


def answers(
    generators: Mapping[str, Generator], limits: PageLimits, form: Form, folder: Path, report: Report
) -> Iterator[tuple[str, Answer]]:
    """The sounds of the chosen weights, one after the other, each with its name. Films are written into `folder`.

    Raises ValueError where a sound cannot be made, or is beyond the limits.
    """
    if not form.weights:
        raise ValueError("weights: none is chosen")
    prompt = form.prompt()
    if prompt.steps is not None and prompt.steps > limits.steps:
        raise ValueError(f"steps: {prompt.steps}; this page takes at most {limits.steps}")
    _check_length(prompt.seconds or 0.0, limits)  # before there is memory for it
    for done, name in enumerate(form.weights):
        generator = generators[name]
        started = generator.start_sound(prompt)
        _check_length(started.seconds, limits)
        (sound,) = generator.finish_sounds([started], *_progress(name, done, len(form.weights), report))
        if isinstance(sound, ValueError):
            raise sound
        film = _film(folder, done, sound, generator.sample_rate)
        yield name, Answer(_played(sound, generator), spectrogram_picture(sound.wave, generator.sample_rate),
                           _about(sound), film)  # fmt: skip


def _check_length(seconds: float, limits: PageLimits) -> None:
    if seconds > limits.seconds:
        raise ValueError(f"seconds: {seconds:.1f}; this page makes at most {limits.seconds:g} s; ask for fewer")


def build_page(generators: Mapping[str, Generator], limits: PageLimits) -> gr.Blocks:
    """One visitor's sounds are made at a time; `limits.waiting` others wait for their turn, and more are sent away."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(scale=1, min_width=360):
                inputs, button = _inputs(list(generators))
            with gr.Row(scale=2):  # side by side where there is room
                outputs = [_output(name, generator) for name, generator in generators.items()]

        def generate(*values: Any, progress: gr.Progress = gr.Progress()) -> Iterator[list[Any]]:  # noqa: B008
            form = Form(*values)
            shown: dict[str, Answer | None] = dict.fromkeys(generators)
            with tempfile.TemporaryDirectory(prefix="audiox-page-") as folder:
                try:
                    for name, answer in answers(generators, limits, form, Path(folder), progress):
                        shown[name] = answer
                        yield _updates(generators, form.weights, shown)
                except (ValueError, OSError) as error:
                    raise gr.Error(sentence(error), print_exception=False) from None

        flat = [component for each in outputs for component in each]
        button.click(generate, inputs, flat, api_name="generate", concurrency_limit=1)
    page.queue(max_size=limits.waiting)
    return page


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in self.servers[:1] if self.started else ():
            host, port, *_ = each.sockets[0].getsockname()
            print(f"page: http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)


def serve(page: gr.Blocks, limits: PageLimits, host: str, port: int) -> None:
    """Serves the page until the process is asked to stop; port 0 is any that is free. Gradio's own launcher refuses to
    start where the machine is too busy to answer it within three seconds."""
    options = {"max_file_size": f"{limits.upload_mb}mb", "css": CSS, "footer_links": [], "run_history": False}
    app = gr.mount_gradio_app(fastapi.FastAPI(), page, "/", ssr_mode=False, enable_monitoring=False, **options)
    _Server(uvicorn.Config(app, host, port, log_level="warning")).run()


def _inputs(names: list[str]) -> tuple[list[gr.components.Component], gr.Button]:
    """The fields of `Form`."""
    weights = gr.CheckboxGroup(names, value=names, label="Weights", visible=len(names) > 1)
    text = gr.Textbox(label="Text", placeholder="a bell, then two kicks", elem_id="text", autofocus=True)
    negative = gr.Textbox(label="Not this (needs guidance above 1)", elem_id="negative")
    with gr.Row():
        video = gr.Video(label="Video that the sound fits", sources=["upload"], elem_id="video", height=240)
        sound = gr.Audio(label="Sound", sources=["upload"], type="filepath", elem_id="sound")
    with gr.Accordion("With the given sound", open=False):
        use = gr.Radio(list(USES), value="vary it", show_label=False)
        mask = gr.Textbox(label="Hole, as 2.0-4.5", elem_id="mask")
        level = gr.Slider(0.05, 0.95, VARIATION_LEVEL, step=0.05, label="How far a variation may go")
    with gr.Row():
        seconds = gr.Number(label="Seconds (0: the video's, or a clip's)", value=0, elem_id="seconds")
        steps = gr.Number(label="Steps (0: the weights')", value=0, precision=0)
        guidance = gr.Number(label="Guidance (0: the weights')", value=0)
        seed = gr.Number(label="Seed", value=0, precision=0)
    loop = gr.Checkbox(label="Loop: the end continues in the beginning")
    button = gr.Button("Make the sound", variant="primary", elem_id="generate")
    fields = [weights, text, negative, video, sound, use, mask, level, seconds, steps, guidance, seed, loop]
    return fields, button


def _output(name: str, generator: Generator) -> list[gr.blocks.Block]:
    """A column for one set of weights, and what it shows."""
    licence = f" (licence {generator.license})" if generator.license else ""
    with gr.Column(min_width=280) as column:
        gr.Markdown(f"### {name}{licence}")
        sound = gr.Audio(label=name, interactive=False, elem_classes="sound")
        picture = gr.Image(show_label=False, interactive=False, height=180, elem_classes="spectrogram")
        about = gr.Markdown()
        film = gr.Video(label=f"{name}: the video with its new sound", interactive=False, visible=False, height=240)
    return [column, sound, picture, about, film]


def _updates(generators: Mapping[str, Generator], chosen: Sequence[str], shown: dict[str, Answer | None]) -> list[Any]:
    """Of all columns: those of weights that are not chosen are hidden."""
    updates: list[Any] = []
    for name in generators:
        answer = shown[name]
        updates.append(gr.update(visible=name in chosen))
        if answer is None:
            updates += [None, None, "", gr.update(value=None, visible=False)]
        else:
            film = gr.update(value=answer.film, visible=answer.film is not None)
            updates += [answer.sound, answer.spectrogram, answer.about, film]
    return updates


def _progress(name: str, done: int, count: int, report: Report) -> tuple[Done, Done]:
    """What a generator calls after a clip and after a step."""
    clips = [0, 1]

    def on_clip(finished: int, of: int) -> None:
        clips[:] = finished, of

    def on_step(step: int, steps: int) -> None:
        words = f"{name}: step {step} of {steps}" + (f", clip {clips[0] + 1} of {clips[1]}" if clips[1] > 1 else "")
        report((done + (clips[0] + step / steps) / clips[1]) / count, words)

    return on_clip, on_step


def _played(sound: LongSound, generator: Generator) -> PlayedSound:
    samples = (32767 * sound.wave.clamp(-1, 1)).round().short().T.numpy()
    return generator.sample_rate, samples[:, 0] if samples.shape[1] == 1 else samples


def _about(sound: LongSound) -> str:
    prompt = sound.prompt
    words = f"{prompt.task_label} of “{prompt.full_text}”, {sound.seconds:.2f} s, seed {prompt.seed}"
    return words if sound.input is None else f"{words}; new from {sound.new_span[0]:.2f} to {sound.new_span[1]:.2f} s"


def _film(folder: Path, number: int, sound: LongSound, rate: int) -> str | None:
    """The video with its new sound, in a container that browsers play; None without a video, or where neither holds its
    pictures."""
    if not sound.prompt.video:
        return None
    for ending in PLAYED:
        out = folder / f"{number}{ending}"
        try:
            check_writable(out, Path(sound.prompt.video))
        except ValueError:
            continue
        write_media(out, sound.wave, rate, sound.prompt.video, sound.prompt.start)
        return str(out)
    return None
