"""An index of blocks: every line in one of them, few bytes, and a change is noticed."""

import json

import pytest

from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.manifest.manifest_index import index_manifest, read_block_entries


def written(tmp_path, count, end="\n"):
    path = tmp_path / "m.jsonl"
    lines = [json.dumps({"audio": f"{i}.wav", "start": i}) for i in range(count)]
    lines[3:3] = ["", "  "]
    path.write_bytes(end.join(lines).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("count", "blocks", "per_block"), [(7, 7, 1), (10, 5, 2), (1000, 63, 16)])
def test_blocks_hold_every_line_once(tmp_path, end, count, blocks, per_block):
    path = written(tmp_path, count, end)
    index = index_manifest(path, 16, blocks if count < 1000 else 10)
    assert (index.lines, index.block_lines, len(index)) == (count, per_block, -(-count // per_block))
    found = [read_block_entries(path, index.task(number), True) for number in range(len(index))]
    assert all(len(block) == per_block for block in found[:-1])
    assert [entry for block in found for entry in block] == read_entries(path, allow_private=True)


def test_a_change_is_noticed(tmp_path):
    path = written(tmp_path, 100)
    index = index_manifest(path, 16, 4)
    path.write_bytes(path.read_bytes().replace(b"77.wav", b"78.wav"))
    read_block_entries(path, index.task(0), False)
    with pytest.raises(ValueError, match=r"m\.jsonl has changed while it was used; restore it"):
        read_block_entries(path, index.task(77 // 16), False)


def test_a_manifest_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        index_manifest(tmp_path / "none", 16, 4)
    (tmp_path / "m.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match="holds no line"):
        index_manifest(tmp_path / "m.jsonl", 16, 4)


def test_it_takes_half_a_byte_per_line(tmp_path):
    index = index_manifest(written(tmp_path, 20_000), 64, 256)
    assert index._blocks.nbytes / index.lines <= 0.51
