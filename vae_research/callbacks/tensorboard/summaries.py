"""The event files of a run: train/, validation/ and run/ are three runs of TensorBoard.

TensorBoard reads the event files of a folder in their order and does not come back to an earlier
one. All callbacks of a run therefore share one file in each folder.
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

from vae_research.callbacks.tensorboard import event_protos
from vae_research.callbacks.tensorboard.background import background

_numbers = itertools.count()

# How long a checkpoint waits for the event files that it describes.
_SECONDS_TO_SETTLE = 5.0


def settle() -> None:
    """Waits until everything that was written so far is in its file, as far as the disk allows."""
    for log in list(_Log.all_open()):
        log.flush_all()
    background().wait(_SECONDS_TO_SETTLE)


class Summaries:
    """Writes summaries under `log_dir`, in one folder for each split, opened when first used.

    Several objects of one process that write to the same `log_dir` share its files. All of it is
    encoded and written by a thread in the background. Nothing here raises because of a disk: what
    fails is told once for each `log_dir`, as a warning, and what comes later is written where that
    is possible again.

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
        """Writes the summary that a function returns, which is called in the background."""
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
        """Writes vectors for the projector, as the only ones of this split.

        Args:
            split: the folder; it holds an event file from now on, without which the projector does
                not see it.
            name: how TensorBoard calls them.
            vectors: `[count, latent]`.
            labels: `[count]`, shown beside the points.
            images: `[count, height, width, channels]` in [0, 1], shown in place of the points.

        Raises:
            ValueError: there are not as many labels or images as vectors.
        """
        for kind, values in (("labels", labels), ("images", images)):
            if values is not None and len(values) != len(vectors):
                raise ValueError(f"There are {len(vectors)} vectors and {len(values)} {kind}.")
        self._in_background(lambda log: log.write_vectors(split, name, vectors, labels, images))

    def file(self, name: str, content: str, *, append: bool = False) -> None:
        """Writes a text file below `log_dir`, or lines at its end."""
        self._in_background(lambda log: log.write_file(name, content, append=append))

    def flush(self, split: str) -> None:
        """Has what was written so far made visible to TensorBoard."""
        self._in_background(lambda log: log.flush(split))

    def close(self) -> None:
        """Waits until everything is written, and closes the files that nobody else uses.

        A later write opens new ones.
        """
        log, self._log = self._log, None
        if log is not None:
            log.release()

    def _in_background(self, work: Callable[[_Log], None]) -> None:
        if self._log is None:
            self._log = _Log.shared(self.log_dir)
        self._log.submit(work)


class _Log:
    """The event files below one folder, as all its users share them.

    Files are touched by the background thread alone, and failures are told by the caller's, where
    a warning is caught and shown as everywhere else.
    """

    _open: ClassVar[dict[Path, _Log]] = {}
    # A run opens its files again for the test figures, and is told no second time.
    _told: ClassVar[set[Path]] = set()

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
            self.submit(lambda log: log._close())
        if not background().wait():
            self._failed("the disk has not taken everything yet")
        self._tell()

    def submit(self, work: Callable[[_Log], None]) -> None:
        if not background().submit(lambda: self._attempt(work)):
            self._failed("the disk is too slow, and some of it is left out")
        self._tell()

    def flush_all(self) -> None:
        self.submit(lambda log: [file.flush() for file in log._files.values()])

    def _attempt(self, work: Callable[[_Log], None]) -> None:
        try:
            work(self)
        # Everything: an exception here would end the thread that all logs share, and no mistake in
        # a picture is worth a training run.
        except Exception as error:
            self._failed(" ".join(f"{type(error).__name__}: {error}".split()))
            self._files = {}  # a file in which a write has failed may end in the middle of a record

    def _failed(self, reason: str) -> None:
        self._failure = self._failure or reason

    def _tell(self) -> None:
        if self._failure is None:
            return
        path = Path(os.path.abspath(self.folder))
        if path not in self._told:
            self._told.add(path)
            warnings.warn(
                f"What TensorBoard shows of {self.folder} is not complete ({self._failure}). "
                "Training goes on, and what comes later is written if that is possible.",
                stacklevel=2,
            )

    # What the background thread does.

    def write(self, split: str, event: Any) -> None:
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
            _replace(path, content.encode())

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
        files = event_protos.projector_files(name, vectors, labels, images)
        for path, content in files.items():
            _replace(self.folder / split / path, content)

    def _file(self, split: str) -> _EventFile:
        if split in self._files and not self._files[split].path.exists():
            self._files = {}
            raise FileNotFoundError(f"{self.folder / split} was removed")
        if split not in self._files:
            self._files[split] = _EventFile(self.folder / split)
        return self._files[split]

    def _close(self) -> None:
        files, self._files = self._files, {}
        for file in files.values():
            file.close()


class _EventFile:
    """One event file, whose name sorts behind all that were written before."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / f"{name}.{next(_numbers):06d}.v2"
        self._records = tf.io.TFRecordWriter(str(self.path))
        self.write(event_protos.Event(wall_time=now, file_version=event_protos.FILE_VERSION))
        self.flush()

    def write(self, event: Any) -> None:
        if not event.wall_time:
            event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()


def _replace(path: Path, content: bytes) -> None:
    """Writes a file whole: TensorBoard may be reading the one that is there."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_bytes(content)
    os.replace(aside, path)
