"""The network that released weights belong to, by their names and shapes."""

from torch import Tensor, nn

from . import alignment, avsync, cavp, imagebind, panns, passt, vggish


def under_own_names(kind: str, released: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released weights as `network_of` takes them: those that are used, under the names of our network.

    Raises ValueError for the weights of something else.
    """
    renames = {
        "avsync": avsync.renamed,
        "imagebind": imagebind.renamed,
        "alignacc": alignment.renamed,
        "cavp": cavp.renamed,
    }
    rename = renames.get(kind)
    try:
        return rename(released) if rename else released
    except KeyError as error:
        raise ValueError(f"no weights of {kind}, they lack {error}") from None


def network_of(kind: str, state: dict[str, Tensor]) -> nn.Module:
    """The network that weights with these names and shapes belong to, still without them. `state` is as
    `under_own_names` has made it.

    Raises ValueError for the weights of something else.
    """
    try:
        if kind == "panns":
            window = state[panns.WINDOW_KEY].shape[-1]
            if window not in panns.FRONT_ENDS:
                raise ValueError(f"a window of {window} samples; the released ones have {list(panns.FRONT_ENDS)}")
            return panns.Cnn14(panns.FRONT_ENDS[window], width=state["conv_block1.conv1.weight"].shape[0])
        if kind == "passt":
            frequencies, times = state[passt.POSITION_KEY].shape[2], state["time_new_pos_embed"].shape[3]
            if frequencies not in passt.STRIDES:
                raise ValueError(f"{frequencies} patches in frequency; the released ones have {list(passt.STRIDES)}")
            depth = sum(passt.DEPTH_KEY.format(i) in state for i in range(len(state)))
            return passt.Passt(state["cls_token"].shape[2], depth, (frequencies, times))
        if kind == "avsync":
            return avsync.AvSync.of_weights(state)
        if kind == "imagebind":
            return imagebind.ImageBind.of_weights(state)
        if kind == "alignacc":
            return alignment.AlignmentClassifier.of_weights(state)
        if kind == "cavp":
            return cavp.Cavp.of_weights(state)
        convolutions = [state[f"features.{i}.weight"].shape[0] for i in (0, 3, 6, 8, 11, 13)]
        widths = (*convolutions[:1], 0, *convolutions[1:2], 0, *convolutions[2:4], 0, *convolutions[4:], 0)
        return vggish.VggishNetwork(widths, hidden=state["embeddings.0.weight"].shape[0])
    except KeyError as error:
        raise ValueError(f"no weights of {kind}, they lack {error}") from None
