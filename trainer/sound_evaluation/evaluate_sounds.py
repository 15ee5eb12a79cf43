"""Judge folders of sounds: score them together with other ranks, and write the report once."""

from dataclasses import dataclass, field
from pathlib import Path

from ..core.files import write_json
from ..scorers.build import build_scorers
from ..scorers.scoring import SoundScoring
from ..workers.launch_rank import LaunchRank
from .folders import find_sounds, read_evaluated_prompts
from .report import compare_prompts, report_head, write_sound_page
from .results import JudgeSettings, Row, judge_folders, needed_videos

SHOWN = 8  # prompts whose sounds a page plays


@dataclass(frozen=True)
class SoundEvaluation:
    """The options of `launch/evaluate.py --sounds`."""

    sounds: list[Path]  # folders
    reference: Path  # prompts
    scorers: Path
    out: Path
    html: Path | None = None
    cache: Path | None = None  # default: `out` with .features
    device: str | None = None
    show: tuple[str, ...] = ()
    settings: JudgeSettings = field(default_factory=JudgeSettings)


def evaluate_sounds(evaluation: SoundEvaluation) -> Row | None:
    """The report, on rank 0, which also writes it; None on the others.

    Raises ValueError where folders, prompts or scorers are wrong, or sounds cannot be judged; StoppedError as
    `SoundScoring.run`.
    """
    prompts = read_evaluated_prompts(evaluation.reference)
    folders = [find_sounds(folder, prompts) for folder in evaluation.sounds]
    names = [folder.name for folder in folders]
    if len({*names, "reference"}) <= len(names):
        raise ValueError(f"--sounds: {', '.join(names)}; folders need different names, and none may be 'reference'")
    place = LaunchRank.from_environment()
    scorers, file = build_scorers(evaluation.scorers, place.device(evaluation.device))
    for path in (evaluation.out, evaluation.html or evaluation.out):
        path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the evaluation
    paths = [p.reference for p in prompts if p.reference] + [path for f in folders for path in f.sounds.values()]
    cache = evaluation.cache or evaluation.out.with_suffix(".features")
    videos = needed_videos(prompts, scorers)
    scoring = SoundScoring(paths, scorers, cache, file.pad_to, videos)
    scoring.run(place.rank, place.ranks)
    if place.rank:
        return None
    report = report_head(evaluation.reference, evaluation.sounds, scorers, evaluation.settings)
    report |= judge_folders(prompts, folders, scoring.results(), scorers, evaluation.settings)
    write_json(evaluation.out, report)
    if evaluation.html:
        left_out = {row["id"] for row in report["left_out"]}
        shown = evaluation.show or [p.id for p in prompts if p.id not in left_out][:SHOWN]
        write_sound_page(report, compare_prompts(prompts, folders, shown), evaluation.html)
    return report
