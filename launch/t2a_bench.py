"""T2A-bench as in the paper's appendix A-C: prompts of four types, and a model that hears as the judge.

examples:
  python launch/t2a_bench.py prompts --endpoint http://127.0.0.1:8000/v1 --model gemini-2.5-pro --out t2a
  python launch/generate.py --weights weights/turbo --prompts t2a/prompts.jsonl --out-dir sounds/turbo
  python launch/t2a_bench.py judge --bench t2a/bench.jsonl --sounds sounds/turbo sounds/base --out t2a.json \
      --endpoint http://127.0.0.1:8000/v1 --model gemini-2.5-pro --price 1.25 10

The judge annotates each sound without its prompt, and then decides by annotation and prompt. Answers are kept in
OUT.answers, so the same command resumes. The API key is read from the environment variable OPENAI_API_KEY.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.core import cli


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    prompts = kinds.add_parser("prompts", help="let a model write the prompts, or read them from a file")
    judge = kinds.add_parser("judge", help="judge folders of sounds of these prompts")
    prompts.add_argument("--bench", type=Path, help="prompts that are there already, instead of --endpoint")
    prompts.add_argument("--per-count", type=cli.positive, default=100, help="a fifth of each type (default: 100)")
    prompts.add_argument("--seconds", type=float, default=10.0, help="length of the sounds (default: 10)")
    prompts.add_argument("--out", type=Path, required=True, help="folder of prompts.jsonl and bench.jsonl")
    add = judge.add_argument
    add("--bench", type=Path, required=True, help="bench.jsonl that `prompts` wrote")
    add("--sounds", nargs="+", type=Path, required=True, help="folders of anybody's sounds for these prompts")
    add("--out", type=Path, required=True, help="JSON file of the report; OUT.judgments.jsonl has each sound")
    add("--tolerance", type=float, default=1.0, help="seconds that start and end may be off (default: 1)")
    add("--leave-out", action="store_true", help="leave prompts out whose sound is missing or not judged")
    add("--again", action="store_true", help="ask again where earlier answers were refused")
    add("--seed", type=int, default=0, help="of the intervals (default: 0)")
    price = "money per million tokens read and written, for the estimate that is printed before anything is asked"
    add("--price", nargs=2, type=float, default=(0.0, 0.0), metavar=("IN", "OUT"), help=price)
    add("--audio-tokens", type=float, default=32.0, help="of a second of sound (default: 32)")
    add("--at-most", type=float, help="stop before anything is asked if the estimate is higher")
    add("--estimate", action="store_true", help="print the estimate and stop")
    for kind in (prompts, judge):
        kind.add_argument(
            "--endpoint", metavar="URL", required=kind is judge, help="an OpenAI-compatible API, with /v1"
        )
        kind.add_argument("--model", required=kind is judge, help="its name there")
        kind.add_argument("--concurrency", type=cli.positive, default=8, help="requests at a time (default: 8)")
        kind.add_argument("--rate", type=float, default=0.0, help="most requests per minute (default: no limit)")
        kind.add_argument("--retries", type=int, default=8, help="of a failed request (default: 8)")
        kind.add_argument("--timeout", type=float, default=120.0, help="seconds per request (default: 120)")
    arguments = parser.parse_args(argv)
    if arguments.kind == "prompts" and bool(arguments.bench) == bool(arguments.endpoint and arguments.model):
        parser.error("prompts: give either --bench, or --endpoint and --model")
    return arguments


def endpoint(a: argparse.Namespace) -> Any:
    from audiox_trainer.trainer.manifest.endpoint import Endpoint

    return Endpoint(a.endpoint, a.model, a.rate, retries=a.retries, timeout=a.timeout)


def write_prompts(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.core.files import refuse_existing, write_text
    from audiox_trainer.trainer.paper import bench_prompts, bench_writer

    for name in ("bench.jsonl", "prompts.jsonl"):
        refuse_existing(a.out / name)
    a.out.mkdir(parents=True, exist_ok=True)
    if a.bench:
        prompts = bench_prompts.read_bench(a.bench)
    else:
        answers = a.out / "prompts.answers"
        prompts = bench_writer.write_prompts(endpoint(a), a.per_count, a.seconds, answers, a.concurrency)
    write_text(a.out / "prompts.jsonl", bench_prompts.generation_lines(prompts))
    write_text(a.out / "bench.jsonl", bench_prompts.bench_lines(prompts))
    print(f"{len(prompts)} prompts\n{a.out / 'prompts.jsonl'}\n{a.out / 'bench.jsonl'}")


def judge(a: argparse.Namespace) -> None:
    from contextlib import closing

    from audiox_trainer.trainer.core.files import write_json, write_text
    from audiox_trainer.trainer.manifest.answer_cache import AnswerCache
    from audiox_trainer.trainer.manifest.endpoint import EndpointClient
    from audiox_trainer.trainer.manifest.prices import Price
    from audiox_trainer.trainer.pages.tables import as_text
    from audiox_trainer.trainer.paper import bench_prompts, hearing_judge, instruction_report
    from audiox_trainer.trainer.sound_evaluation.folders import find_sounds

    prompts = bench_prompts.read_bench(a.bench)
    folders = [find_sounds(folder, bench_prompts.evaluated_prompts(prompts)) for folder in a.sounds]
    if len({folder.name for folder in folders}) < len(folders):
        raise ValueError(f"--sounds: {', '.join(folder.name for folder in folders)}; folders need different names")
    if not a.tolerance > 0:
        raise ValueError(f"--tolerance {a.tolerance:g}: must be above 0 seconds")
    price = Price(a.price[0], a.price[1], a.audio_tokens)
    price.check_limit(a.at_most)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    with closing(AnswerCache(a.out.with_name(a.out.name + ".answers"))) as answers:
        asker = hearing_judge.HearingJudge(EndpointClient(endpoint(a)), answers, a.tolerance, a.concurrency, a.again)
        estimate = instruction_report.estimate_price(asker, prompts, folders, price)
        print(estimate)
        if a.estimate:
            return
        if a.at_most is not None and estimate.money > a.at_most:
            raise ValueError(f"--at-most {a.at_most:g}: the estimate is {estimate.money:.2f}; nothing was asked")
        report, judgments = instruction_report.judge_instructions(asker, prompts, folders, a.seed, a.leave_out)
    write_json(a.out, report | {"tolerance": a.tolerance})
    write_text(a.out.with_name(a.out.name + ".judgments.jsonl"), instruction_report.judgment_lines(judgments))
    note = f"{report['judged']} of {report['prompts']} prompts, judged by {a.model}. 95 % bootstrap intervals."
    print(as_text(instruction_report.instruction_table(report, "T2A-bench", note)) + f"\n\n{a.out}")


def main() -> int:
    arguments = parse()
    return cli.run(lambda: write_prompts(arguments) if arguments.kind == "prompts" else judge(arguments))


if __name__ == "__main__":
    sys.exit(main())
