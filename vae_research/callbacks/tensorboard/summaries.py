"""Writes event files; train/, validation/ and run/ of a run directory are runs of TensorBoard.

TensorBoard reads the event files of a folder in order and never returns to an earlier one. All
callbacks of a run therefore share one file in each folder.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from vae_research import files
from vae_research.callbacks.tensorboard import event_protos
from vae_research.callbacks.tensorboard.background import background

_numbers = itertools.count()

# How long a checkpoint waits for the event files whose lengths it records.
_SECONDS_TO_SETTLE = 5.0


def settle() -> None:
    """Waits until everything written so far is in its file, at most 5 seconds."""
    for log in list(_Log.all_open()):
        log.flush_all()
    background().wait(_SECONDS_TO_SETTLE)


class Summaries:
    """Writes summaries under `log_dir`, in one folder for each split, made when first used.

    All objects of a process that write to the same `log_dir` share its files. A background thread
    encodes and writes. A failed write never raises: it warns once for each `log_dir`, and later
    summaries are written if that is possible again.

    Args:
        log_dir: the run directory.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self.log_dir = Path(log_dir)
        self._log: _Log | None = None

    def scalars(self, split: str, values: Mapping[str, float], step: int) -> None:
        """Writes scalars by tag at an optimizer step."""
        self.add(split, lambda: event_protos.scalars(values), step)

    def image(
        self, split: str, tag: str, picture: np.ndarray, step: int, description: str = ""
    ) -> None:
        """Writes one picture, `[height, width, channels]` in [0, 1]."""
        self.add(split, lambda: event_protos.image(tag, picture, description), step)

    def histogram(
        self, split: str, tag: str, values: np.ndarray, step: int, description: str = ""
    ) -> None:
        """Writes a histogram of the finite values of an array."""
        self.add(split, lambda: event_protos.histogram(tag, values, description), step)

    def text(self, split: str, tag: str, markdown: str, step: int) -> None:
        """Writes Markdown."""
        self.add(split, lambda: event_protos.text(tag, markdown), step)

    def add(self, split: str, make: Callable[[], event_protos.Summary], step: int) -> None:
        """Writes the summary that `make` returns; `make` is called in the background."""
        now = time.time()

        def write(log: _Log) -> None:
            event_protos.require_tensorboard()
            log.write(split, event_protos.Event(wall_time=now, step=step, summary=make()))

        self._in_background(write)

    def graph(self, split: str, graph: tf.Graph) -> None:
        """Writes a graph."""

        def write(log: _Log) -> None:
            event_protos.require_tensorboard()
            log.write(split, event_protos.graph_event(graph))

        self._in_background(write)

    def vectors(
        self,
        split: str,
        name: str,
        vectors: np.ndarray,
        labels: np.ndarray | Sequence[Any] | None = None,
        images: np.ndarray | None = None,
    ) -> None:
        """Writes vectors for the projector; they replace earlier ones of this split.

        Args:
            split: the folder. It also gets an event file, without which the projector ignores it.
            name: name of the vectors in TensorBoard.
            vectors: `[count, latent]`.
            labels: `[count]`, shown beside the points.
            images: `[count, height, width, channels]` in [0, 1], shown in place of the points.

        Raises:
            ValueError: the number of labels or images is not that of the vectors.
        """
        for kind, values in (("labels", labels), ("images", images)):
            if values is not None and len(values) != len(vectors):
                raise ValueError(f"There are {len(vectors)} vectors and {len(values)} {kind}.")
        self._in_background(lambda log: log.write_vectors(split, name, vectors, labels, images))

    def file(self, name: str, content: str, *, append: bool = False) -> None:
        """Writes a text file under `log_dir`, or appends to it."""
        self._in_background(lambda log: log.write_file(name, content, append=append))

    def flush(self, split: str) -> None:
        """Makes what was written so far visible to TensorBoard."""
        self._in_background(lambda log: log.flush(split))

    def close(self) -> None:
        """Waits until everything is written, and closes files that no other object uses.

        A later write opens new files.
        """
        log, self._log = self._log, None
        if log is not None:
            log.release()

    def _in_background(self, work: Callable[[_Log], None]) -> None:
        if self._log is None:
            self._log = _Log.shared(self.log_dir)
        self._log.submit(work)


class _Log:
    """The event files under one folder, shared by all their users.

    Only the background thread touches files. Only the caller's thread warns of failures, so that
    the warnings can be caught and filtered as usual.
    """

    _open: ClassVar[dict[Path, _Log]] = {}
    # Kept when a log is closed: a run opens its files again for the test figures.
    _warned: ClassVar[set[Path]] = set()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._users = 0
        self._files: dict[str, _EventFile] = {}
        self._failure: str | None = None

    @classmethod
    def shared(cls, folder: Path) -> _Log:
        log = cls._open.setdefault(Path(os.path.abspath(folder)), cls(folder))
        log._users += 1
        return log

    @classmethod
    def all_open(cls) -> Iterable[_Log]:
        return cls._open.values()

    def release(self) -> None:
        self._users -= 1
        if not self._users:
            self._open.pop(Path(os.path.abspath(self.folder)))
            self.submit(_Log._close)
        if not background().wait():
            self._note_failure("the disk has not taken everything yet")
        self._warn_once()

    def submit(self, work: Callable[[_Log], None]) -> None:
        if not background().submit(lambda: self._attempt(work)):
            self._note_failure("the disk is too slow, and some of it is left out")
        self._warn_once()

    def flush_all(self) -> None:
        self.submit(_Log._flush_all)

    def _attempt(self, work: Callable[[_Log], None]) -> None:
        try:
            work(self)
        # Any exception: it would end the thread that all logs share, and no mistake in a picture is
        # worth a training run.
        except Exception as error:
            self._note_failure(" ".join(f"{type(error).__name__}: {error}".split()))
            self._files = {}  # a file may end with half a record after a failed write

    def _note_failure(self, reason: str) -> None:
        self._failure = self._failure or reason

    def _warn_once(self) -> None:
        if self._failure is None:
            return
        path = Path(os.path.abspath(self.folder))
        if path not in self._warned:
            self._warned.add(path)
            warnings.warn(
                f"What TensorBoard shows of {self.folder} is incomplete ({self._failure}). "
                "Training continues, and later summaries are written if that is possible.",
                stacklevel=2,
            )

    # On the background thread:

    def write(self, split: str, event: event_protos.Event) -> None:
        self._file(split).write(event)

    def flush(self, split: str) -> None:
        self._file(split).flush()

    def write_file(self, name: str, content: str, *, append: bool) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if append:
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(content)
        else:
            files.replace(path, content.encode(), durable=False)

    def write_vectors(
        self,
        split: str,
        name: str,
        vectors: np.ndarray,
        labels: np.ndarray | Sequence[Any] | None,
        images: np.ndarray | None,
    ) -> None:
        event_protos.require_tensorboard()
        self.flush(split)
        contents = event_protos.projector_files(name, vectors, labels, images)
        for file, content in contents.items():
            files.replace(self.folder / split / file, content, durable=False)

    def _file(self, split: str) -> _EventFile:
        if split in self._files and not self._files[split].path.exists():
            self._files = {}
            raise FileNotFoundError(f"{self.folder / split} was removed")
        if split not in self._files:
            self._files[split] = _EventFile(self.folder / split)
        return self._files[split]

    def _flush_all(self) -> None:
        for file in self._files.values():
            file.flush()

    def _close(self) -> None:
        open_files, self._files = self._files, {}
        for file in open_files.values():
            file.close()


class _EventFile:
    """One event file, whose name sorts after all earlier ones."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / f"{name}.{next(_numbers):06d}.v2"
        self._records = tf.io.TFRecordWriter(str(self.path))
        self.write(event_protos.Event(wall_time=now, file_version=event_protos.FILE_VERSION))
        self.flush()

    def write(self, event: event_protos.Event) -> None:
        if not event.wall_time:
            event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()
