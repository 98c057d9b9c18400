"""PyTorch: a plain loop over a tensor in memory, eager or compiled, float32 or bfloat16 autocast.

At its best on a CPU: a batch is one `index_select` (workers of a DataLoader cost more than they
save), Adam is fused, the loss is summed on the device, shapes are static so that each of the two
batch sizes is compiled separately, and denormal numbers count as zero: the moments of Adam decay to
them for pixels that are always black, which costs a fifth of the speed from the second epoch on.
Convolutions have their channels last, which makes them 1.4 times as fast in bfloat16.
tcmalloc is preloaded if it is installed, as PyTorch's tuning guide recommends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.protocol import best_matrix_product, serve
from benchmarks.torch_networks import decoder, encoder, head, initialise_like_keras
from benchmarks.works import IMPORTANCE_SAMPLES, LEARNING_RATE, Work, as_float


class Model(nn.Module):
    """Encoder, two heads, decoder; the forward pass is the loss of a batch, nats per image."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder(work), decoder(work)
        self.mean, self.log_var = head(work), head(work)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and logarithm of the variance, `[batch, latent]` float32."""
        features = self.encoder(images)
        return self.mean(features).float(), self.log_var(features).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, log_var = self.encode(images)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        logits = self.decoder(z).float()
        reconstruction = functional.binary_cross_entropy_with_logits(
            logits, images, reduction="sum"
        )
        kl = -0.5 * torch.sum(1.0 + log_var - mean.square() - log_var.exp())
        return (reconstruction + kl) / len(images)


class PyTorch:
    """Variant: {"compiled": bool, "precision": "float32" or "bfloat16"}."""

    def __init__(self, work: Work, variant: dict[str, Any]) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(os.cpu_count() or 1)
        torch.set_flush_denormal(True)
        self.work = work
        layout = torch.channels_last if work.filters else torch.contiguous_format
        images = torch.from_numpy(as_float(work.training_images())).permute(0, 3, 1, 2)
        self.images = images.contiguous(memory_format=layout)
        self.model = Model(work).to(memory_format=layout)
        initialise_like_keras(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE, fused=True)
        self.autocast = variant["precision"] == "bfloat16"
        self.loss = self._loss
        if variant["compiled"]:
            self.loss = torch.compile(
                self._loss, dynamic=False, options={"cpp_wrapper": not work.filters}
            )
        tcmalloc = "with" if "tcmalloc" in os.environ.get("LD_PRELOAD", "") else "without"
        self.description = f"{torch.get_num_threads()} threads, {tcmalloc} tcmalloc"

    def _loss(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.model(images)

    def train(self, go_on: Callable[[], bool], step_done: Callable[[], None] | None) -> list[float]:
        """Trains whole epochs."""
        losses = []
        while go_on():
            total = torch.zeros(())
            for rows in torch.randperm(len(self.images)).split(self.work.batch_size):
                loss = self.loss(self.images.index_select(0, rows))
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                total += loss.detach() * len(rows)
                if step_done is not None:
                    step_done()
            losses.append(float(total) / len(self.images))
        return losses

    @torch.inference_mode()
    def negative_log_likelihood(self, count: int) -> float:
        """Returns the importance-weighted figure, all samples of 10 images in one pass."""
        images = torch.from_numpy(as_float(self.work.test_images(count))).permute(0, 3, 1, 2)
        values = []
        for batch in images.split(10):
            mean, log_var = self.model.encode(batch)
            noise = torch.randn(IMPORTANCE_SAMPLES, *mean.shape)
            z = mean + torch.exp(0.5 * log_var) * noise
            logits = self.model.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            log_likelihood = (
                -functional.binary_cross_entropy_with_logits(
                    logits, batch.expand_as(logits), reduction="none"
                )
                .flatten(2)
                .sum(2)
            )
            log_ratio = 0.5 * (noise.square() + log_var - z.square()).sum(2)
            values.append(-torch.logsumexp(log_likelihood + log_ratio, 0))
        return float(torch.cat(values).mean() + torch.log(torch.tensor(IMPORTANCE_SAMPLES)))

    def matrix_products(self) -> dict[str, float]:
        """Returns FLOP/s of one large product by precision."""
        speeds = {}
        for dtype in (torch.float32, torch.bfloat16):

            def product(side: int, dtype: torch.dtype = dtype) -> Callable[[], torch.Tensor]:
                a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
                out = torch.empty(side, side, dtype=dtype)
                return lambda: torch.mm(a, b, out=out)

            speeds[str(dtype).removeprefix("torch.")] = best_matrix_product(product)
        return speeds


if __name__ == "__main__":
    serve(PyTorch, ("python", "torch"))
