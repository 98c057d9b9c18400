"""Protocol buffers of TensorBoard's plugins. Pure functions; no file is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from vae_research.callbacks.tensorboard.drawing import sprite
from vae_research.plots import encode_png

try:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins import projector
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.custom_scalar import metadata as custom_scalar
    from tensorboard.plugins.histogram.summary_v2 import histogram_pb
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
    from tensorboard.plugins.hparams import metadata as hparams
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.plugins.image import metadata as image_plugin
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.util.tensor_util import make_tensor_proto
except ImportError as error:  # training works without TensorBoard
    _import_error: ImportError | None = error
else:
    _import_error = None

# The version in the first record of an event file; TensorBoard rejects files with another one.
FILE_VERSION = "brain.Event:2"

# The fastest, since pictures are encoded while the model trains; files are a tenth larger.
_PNG_COMPRESSION = 1


def require_tensorboard() -> None:
    """Raises ImportError if the package tensorboard cannot be imported."""
    if _import_error is not None:
        raise _import_error


def scalars(values: Mapping[str, float]) -> Summary:
    """Returns the summary of scalars by tag."""
    summary = Summary()
    for tag, value in values.items():
        summary.MergeFrom(scalar_pb(tag, value))
    return summary


def histogram(tag: str, values: np.ndarray, description: str = "") -> Summary:
    """Returns the summary of a histogram of the finite values of an array, in 30 buckets."""
    values = np.asarray(values)
    return histogram_pb(tag, values[np.isfinite(values)], buckets=30, description=description)


def text(tag: str, markdown: str) -> Summary:
    """Returns the summary of a text in Markdown."""
    return text_pb(tag, markdown)


def image(tag: str, picture: np.ndarray, description: str = "") -> Summary:
    """Returns the summary of a picture, `[height, width, channels]` in [0, 1], an 8-bit PNG."""
    height, width, _ = picture.shape
    png = encode_png(picture, compression=_PNG_COMPRESSION)
    tensor = make_tensor_proto(
        np.array([str(width).encode(), str(height).encode(), png], dtype=object)
    )
    metadata = image_plugin.create_summary_metadata(None, description)
    return Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])


def layout(charts: Mapping[str, Mapping[str, Sequence[str]]]) -> Summary:
    """Returns the summary that arranges the charts of the Custom Scalars dashboard.

    Args:
        charts: by category and title, the regular expressions of the tags in a chart.
    """
    categories = [
        layout_pb2.Category(
            title=category,
            chart=[
                layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
                for title, tags in found.items()
            ],
        )
        for category, found in charts.items()
    ]
    content = layout_pb2.Layout(category=categories).SerializeToString()
    return Summary(
        value=[
            Summary.Value(
                tag=custom_scalar.CONFIG_SUMMARY_TAG,
                tensor=make_tensor_proto(np.array(content, dtype=object)),
                metadata=custom_scalar.create_summary_metadata(),
            )
        ]
    )


def session_start(values: Mapping[str, bool | float | str], name: str) -> Summary:
    """Returns the summary that starts a row of the HParams table, with the settings of a run.

    Args:
        values: settings by name.
        name: name of the row; rows of the same name are shown as one.
    """
    return hparams_pb(dict(values), trial_id=name)


def session_end(seconds_since_epoch: float, *, success: bool) -> Summary:
    """Returns the summary that completes the row of `session_start`."""
    status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=seconds_since_epoch)
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    return Summary(
        value=[
            Summary.Value(
                tag=hparams.SESSION_END_INFO_TAG,
                tensor=hparams.NULL_TENSOR,
                metadata=hparams.create_summary_metadata(data),
            )
        ]
    )


def graph_event(graph: tf.Graph) -> Event:
    """Returns the event of a graph, which is not a summary; a run has at most one."""
    return Event(graph_def=graph.as_graph_def(add_shapes=True).SerializeToString())


def projector_files(
    name: str,
    vectors: np.ndarray,
    labels: np.ndarray | Sequence[Any] | None,
    images: np.ndarray | None,
) -> dict[str, bytes]:
    """Returns the contents of the projector's files by name; they belong beside an event file.

    Vectors of fewer than three dimensions are padded with zeros: the projector starts with three
    principal components, and draws nothing if there are fewer.

    Args:
        name: name of the vectors.
        vectors: `[count, latent]`.
        labels: `[count]`, or None.
        images: `[count, height, width, channels]`, or None.
    """
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(tensor_name=name, tensor_path=f"{name}.tsv")
    padding = "\t0" * (3 - vectors.shape[1])
    lines = ["\t".join([f"{value:.6g}" for value in row]) + padding for row in vectors.tolist()]
    files = {embedding.tensor_path: "\n".join(lines).encode() + b"\n"}
    if labels is not None:
        embedding.metadata_path = f"{name}_labels.tsv"
        files[embedding.metadata_path] = "".join(f"{label}\n" for label in labels).encode()
    if images is not None:
        picture, size = sprite(images)
        embedding.sprite.image_path = f"{name}_sprite.png"
        embedding.sprite.single_image_dim.extend(size)
        files[embedding.sprite.image_path] = encode_png(picture, compression=_PNG_COMPRESSION)
    # Last, since it refers to the others.
    return files | {"projector_config.pbtxt": str(config).encode()}
