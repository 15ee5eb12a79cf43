"""The table of the attention's tiles: a row per GPU and head, or the nearest one; it is rewritten row by row."""

import shutil

import pytest
import torch

from audiox_trainer.kernels import tiles
from audiox_trainer.kernels.tiles import FULL, AttentionTiles, Tiles, attention_tiles, read_tiles, write_tiles

OTHER = AttentionTiles(Tiles(128, 64, 8, 2), Tiles(64, 32, 4, 3), Tiles(64, 64, 4, 1))


@pytest.fixture
def table(tmp_path, monkeypatch):
    path = tmp_path / "tiles.json"
    shutil.copy(tiles.TABLE, path)
    monkeypatch.setattr(tiles, "TABLE", path)
    read_tiles.cache_clear()
    yield path
    read_tiles.cache_clear()


def test_a_gpu_without_a_row_takes_the_nearest_older_one(table):
    write_tiles((9, 0), 64, OTHER, table)
    assert attention_tiles(64, torch.bfloat16, (9, 0)) == OTHER
    assert attention_tiles(64, torch.bfloat16, (9, 5)) == OTHER
    assert attention_tiles(64, torch.bfloat16, (8, 9)) == attention_tiles(64, torch.bfloat16, (8, 0)) != OTHER
    assert attention_tiles(64, torch.bfloat16, (7, 5)) == attention_tiles(64, torch.bfloat16, (8, 0))


def test_a_head_without_a_row_takes_that_of_the_next_narrower_one(table):
    assert attention_tiles(256, torch.float16, (9, 0)) == attention_tiles(128, torch.float16, (9, 0))
    assert attention_tiles(16, torch.float16, (9, 0)) == attention_tiles(32, torch.float16, (9, 0))


def test_float32_has_tiles_of_its_own(table):
    assert attention_tiles(64, torch.float32, (9, 0)) == FULL


def test_writing_a_row_leaves_the_others(table):
    before, text = read_tiles(), table.read_text()
    write_tiles((9, 0), 64, before[9, 0][64], table)
    assert table.read_text() == text
    write_tiles((12, 0), 64, OTHER, table)
    read_tiles.cache_clear()
    assert read_tiles() == before | {(12, 0): {64: OTHER}}
