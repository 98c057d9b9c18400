"""What TensorBoard's plugins read, as protocol messages. Pure functions; no file is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from vae_research.callbacks.tensorboard.drawing import sprite

try:
    from tensorboard.compat.proto import event_pb2, summary_pb2
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
except ImportError as error:  # a run needs none of this
    _missing: ImportError | None = error
else:
    _missing = None
    Summary = summary_pb2.Summary
    Event = event_pb2.Event

# What the first record of an event file says; TensorBoard refuses others.
FILE_VERSION = "brain.Event:2"

# The fastest: pictures are written while the model trains, and a tenth larger than they could be.
_PNG_COMPRESSION = 1


def require_tensorboard() -> None:
    """Raises ImportError where the package tensorboard cannot be imported."""
    if _missing is not None:
        raise _missing


def scalars(values: Mapping[str, float]) -> Summary:
    """Returns scalars by tag."""
    summary = Summary()
    for tag, value in values.items():
        summary.MergeFrom(scalar_pb(tag, value))
    return summary


def histogram(tag: str, values: np.ndarray, description: str = "") -> Summary:
    """Returns a histogram of the finite values of an array, in 30 buckets."""
    values = np.asarray(values)
    return histogram_pb(tag, values[np.isfinite(values)], buckets=30, description=description)


def text(tag: str, markdown: str) -> Summary:
    """Returns Markdown."""
    return text_pb(tag, markdown)


def image(tag: str, picture: np.ndarray, description: str = "") -> Summary:
    """Returns a picture, `[height, width, channels]` in [0, 1], as 8-bit PNG."""
    height, width, _ = picture.shape
    tensor = make_tensor_proto(
        np.array([str(width).encode(), str(height).encode(), png(picture)], dtype=object)
    )
    metadata = image_plugin.create_summary_metadata(None, description)
    return Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])


def png(picture: np.ndarray) -> bytes:
    """Returns a picture, `[height, width, channels]` in [0, 1], as the bytes of a PNG file."""
    bytes_of_pixels = np.rint(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)
    return tf.io.encode_png(bytes_of_pixels, compression=_PNG_COMPRESSION).numpy()


def layout(charts: Mapping[str, Mapping[str, Sequence[str]]]) -> Summary:
    """Returns charts of the Custom Scalars dashboard.

    Args:
        charts: by category and title, the regular expressions of the tags of a chart.
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
    """Returns the settings of a run, a row of the HParams table.

    Args:
        values: settings by name.
        name: of the row; two rows of one name would be one.
    """
    return hparams_pb(dict(values), trial_id=name)


def session_end(seconds_since_epoch: float, *, success: bool) -> Summary:
    """Returns the end of the run that `session_start` began."""
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


def graph_event(graph: tf.Graph) -> Any:
    """Returns the event of a graph; it is no summary, and a run has one."""
    return Event(graph_def=graph.as_graph_def(add_shapes=True).SerializeToString())


def projector_files(
    name: str,
    vectors: np.ndarray,
    labels: np.ndarray | Sequence[Any] | None,
    images: np.ndarray | None,
) -> dict[str, bytes]:
    """Returns the files of the projector, by their names beside an event file.

    Vectors of fewer than three dimensions get zeros for the others: the principal components that
    the projector begins with are three, and of fewer it draws nothing.

    Args:
        name: of the vectors.
        vectors: `[count, latent]`.
        labels: `[count]`, or None.
        images: `[count, height, width, channels]`, or None.
    """
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(tensor_name=name, tensor_path=f"{name}.tsv")
    missing = "\t0" * (3 - vectors.shape[1])
    lines = ["\t".join([f"{value:.6g}" for value in row]) + missing for row in vectors.tolist()]
    files = {embedding.tensor_path: "\n".join(lines).encode() + b"\n"}
    if labels is not None:
        embedding.metadata_path = f"{name}_labels.tsv"
        files[embedding.metadata_path] = "".join(f"{label}\n" for label in labels).encode()
    if images is not None:
        picture, size = sprite(images)
        embedding.sprite.image_path = f"{name}_sprite.png"
        embedding.sprite.single_image_dim.extend(size)
        files[embedding.sprite.image_path] = png(picture)
    # Last: it names the others.
    return files | {"projector_config.pbtxt": str(config).encode()}
