"""Random weights and a sound that follow from names and numbers alone, for networks whose releases are not here."""

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from audiox_trainer.models.encoders.embedded import mel_filters
from audiox_trainer.models.encoders.libraries import transformers
from audiox_trainer.models.encoders.released import released_names
from audiox_trainer.models.encoders.synchformer import Synchformer, SynchformerConfig
from audiox_trainer.models.scorers.panns import FRONT_ENDS, Cnn14
from audiox_trainer.models.scorers.vggish import VggishNetwork
from audiox_trainer.trainer.checkpoint.convert_encoders import convert_scorer

REFERENCES = Path(__file__).parents[1] / "scorers/reference_values.json"


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of these names and shapes, scaled so that values neither grow nor vanish through the layers."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1)
            continue
        values = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
        if name.endswith(("running_var", "melW")):
            state[name] = values.square() + 0.1
        elif len(shape) < 2:
            state[name] = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            state[name] = values * (2 / values[0].numel()) ** 0.5
    return state


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def probe_sound(rate: int, seconds: float, seed: int = 0) -> np.ndarray:
    """(n,) float32: two rising tones and noise."""
    times = np.arange(round(seconds * rate)) / rate
    tones = np.sin(2 * np.pi * (220 * times + 150 * times**2)) + 0.5 * np.sin(2 * np.pi * 1760 * times)
    noise = np.random.default_rng(seed).standard_normal(times.size)
    return (0.25 * tones + 0.05 * noise).astype(np.float32)


def small_panns(folder: Path, rate: int = 16000) -> Path:
    """Cnn14 of a fraction of its width, with the filters of its front end."""
    front_end = next(f for f in FRONT_ENDS.values() if f.rate == rate)
    state = random_state(shapes_of(Cnn14(front_end, width=2).state_dict()))
    steps = torch.arange(front_end.window)
    angle = 2 * torch.pi * torch.outer(steps[: front_end.window // 2 + 1], steps) / front_end.window
    window = torch.hann_window(front_end.window)
    state["spectrogram_extractor.stft.conv_real.weight"] = (angle.cos() * window)[:, None]
    state["spectrogram_extractor.stft.conv_imag.weight"] = (-angle.sin() * window)[:, None]
    state["fc_audioset.weight"] *= 0.02  # else one class has all probability
    state["logmel_extractor.melW"] = mel_filters(rate, 64, front_end.window).T.contiguous()
    return _save(folder, state)


def small_vggish(folder: Path) -> Path:
    widths = (4, 0, 4, 0, 4, 4, 0, 4, 4, 0)
    return _save(folder, random_state(shapes_of(VggishNetwork(widths, hidden=16).state_dict())))


def save_clap(folder: Path) -> Path:
    """CLAP of a small size with a window of one second, with a tokenizer of its make."""
    library = transformers()
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["a bell, then two kicks", "a dog barks"], trainer)
    config = library.ClapConfig(
        text_config={
            "vocab_size": 300,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 66,
            "projection_dim": 8,
        },
        audio_config={
            "patch_embeds_hidden_size": 8,
            "hidden_size": 64,
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 1, 1],
            "spec_size": 256,
            "projection_dim": 8,
        },
        projection_dim=8,
    )
    torch.manual_seed(0)
    library.ClapModel(config).save_pretrained(folder)
    library.ClapFeatureExtractor(max_length_s=1, truncation="rand_trunc").save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "RobertaTokenizer", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    about |= {"unk_token": "<unk>", "mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def _save(folder: Path, state: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    return folder


def released_avsync(width: int = 64, depth: int = 1, size: int = 32, audio_depth: int = 2) -> dict[str, Tensor]:
    """All of Synchformer's released file under its names, of a size that a test can run."""
    config = SynchformerConfig(width, depth, max(1, width // 64), size)
    visual = shapes_of(Synchformer(config).state_dict())
    unused = {"weight": (width, 3, 16, 16), "bias": (width,)}
    shapes = {
        name: visual[ours] if ours else unused[name.rpartition(".")[2]] for name, ours in released_names(depth).items()
    }
    for name, shape in avsync_sound_shapes(width, audio_depth).items():
        shapes[name] = shape
    return random_state(shapes)


def avsync_sound_shapes(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """The released names of Synchformer but of its visual branch, with their shapes."""
    square, wide, tall, row = (width, width), (width, 4 * width), (4 * width, width), (width,)
    ast, gather, offset = "afeat_extractor.ast", "afeat_extractor.freq_attn_agg", "transformer"
    whole: dict[str, tuple[int, ...]] = {
        f"{ast}.embeddings.cls_token": (1, 1, width),
        f"{ast}.embeddings.distillation_token": (1, 1, width),
        f"{ast}.embeddings.position_embeddings": (1, 74, width),
        f"{gather}.cls_token": (1, 1, width),
        f"{gather}.self_attn.in_proj_weight": (3 * width, width),
        f"{gather}.self_attn.in_proj_bias": (3 * width,),
        f"{offset}.OFF_tok": (1, 1, width),
        f"{offset}.MOD_tok": (1, 1, width),
        f"{offset}.pos_emb_cfg.pos_emb": (1, 198, width),
    }
    layers: dict[str, tuple[int, ...]] = {
        f"{ast}.embeddings.patch_embeddings.projection": (width, 1, 16, 16),
        f"{ast}.layernorm": row,
        f"{gather}.self_attn.out_proj": square,
        f"{gather}.linear1": tall,
        f"{gather}.linear2": wide,
        f"{gather}.norm1": row,
        f"{gather}.norm2": row,
        "vproj": square,
        "aproj": square,
        f"{offset}.ln_f": row,
        f"{offset}.vis_in_lnorm": row,
        f"{offset}.aud_in_lnorm": row,
        f"{offset}.off_head": (21, width),
    }
    for i in range(depth):
        block = f"{ast}.encoder.layer.{i}"
        layers |= {f"{block}.attention.attention.{name}": square for name in ("query", "key", "value")}
        layers |= {f"{block}.attention.output.dense": square, f"{block}.intermediate.dense": tall}
        layers |= {f"{block}.output.dense": wide, f"{block}.layernorm_before": row, f"{block}.layernorm_after": row}
    for i in range(3):
        block = f"{offset}.blocks.{i}"
        layers |= {f"{block}.attn.{name}": square for name in ("query", "key", "value", "proj")}
        layers |= {f"{block}.ln1": row, f"{block}.ln2": row, f"{block}.mlp.0": tall, f"{block}.mlp.2": wide}
    for name, shape in layers.items():
        whole |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return whole


def released_imagebind() -> dict[str, Tensor]:
    """ImageBind's release of a size that a test can run, with some of the branches that are left out."""
    table = json.loads(REFERENCES.read_text())["imagebind"]["small"]
    used = {name: tuple(shape) for name, shape in table.items() if ".vision." in name or ".audio." in name}
    return random_state(
        used | {"modality_heads.text.proj.0.weight": (8,), "modality_trunks.imu.blocks.0.mlp.fc1.bias": (8,)}
    )


def save_released(folder: Path, kind: str, state: dict[str, Tensor]) -> Path:
    """A release converted as a user does it."""
    file = folder.with_suffix(".pth")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)
    convert_scorer(file, folder, kind)
    return folder
