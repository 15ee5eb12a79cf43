"""Merge finished manifest blocks into streams: an index of their shards, and a summary of their content.

The files are the same whoever writes them, and however often. streaming's own `merge_index` makes the same index, but
needs an index.json next to each group of shards and replaces files that may be in use.
"""

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import xxhash

from ...models import strict
from ..data.shards import DamagedError, ShardGroup, index_json, stream_features
from ..data.storage import Store
from .counts import Counts
from .encode import Rejection
from .manifest_blocks import PreparePlan, json_bytes, read_block, record_name

THREADS = 16  # buckets answer slowly
EXAMPLES = 64  # the number of blocks, evenly spread, whose examples are kept


@dataclass(frozen=True)
class MergedBlocks:
    """The content of all blocks together."""

    counts: Counts
    examples: list[dict[str, Any]]
    first_rejection: Rejection | None


def merge_blocks(store: Store, plan: PreparePlan) -> MergedBlocks:
    """Write index.json and features.json of each domain, and rejected.jsonl.

    Raises:
        DamagedError: a shard or the record of a block is missing or changed; says how to make it again.
        OSError: the disk is full, or the bucket fails.
    """
    counts, examples = Counts(), list[dict[str, Any]]()
    parts: dict[str, list[ShardGroup]] = defaultdict(list)
    first = None
    with store.scratch() as folder:
        with ThreadPoolExecutor(THREADS) as pool, (folder / "rejected").open("w", encoding="utf-8") as rejected:
            blocks = pool.map(lambda n: read_block(store, plan, n), range(plan.block_count))
            for number, block in enumerate(blocks):
                counts.add(Counts(block.counts))
                for domain, part in block.shards.items():
                    parts[domain].append(part)
                if number % -(-plan.block_count // EXAMPLES) == 0:
                    examples += [{**example, "block": number} for example in block.examples]
                rejected.writelines(json.dumps(asdict(rejection)) + "\n" for rejection in block.rejections)
                first = first or next(iter(block.rejections), None)
        for domain, made in sorted(parts.items()):
            _check_shards_exist(store, domain, made)
            index = index_json(made).encode()
            features = stream_features(made, plan.codec, plan.text, plan.video, str(xxhash.xxh3_128(index).hexdigest()))
            store.write(f"{domain}/index.json", index)
            # Last: without it a folder is no stream.
            store.write(f"{domain}/features.json", json_bytes(strict.to_dict(features)))
        store.put(folder / "rejected", "rejected.jsonl")
    return MergedBlocks(counts, examples, first)


def _check_shards_exist(store: Store, domain: str, parts: list[ShardGroup]) -> None:
    there = store.names(f"{domain}/")
    for part in parts:
        for shard in part.shards:
            raw = shard["raw_data"]
            name = f"{domain}/{raw['basename']}"
            size = store.size(name)
            if name not in there or size not in (None, raw["bytes"]):
                problem = f"has {size} bytes, not {raw['bytes']}" if name in there else "is missing"
                raise DamagedError(
                    f"{store}/{name} {problem}; remove {store}/{record_name(int(raw['basename'].partition('/')[0]))} "
                    f"and run the same command again, which makes the block again"
                )
