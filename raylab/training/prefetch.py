"""From the loader to the model: batches on the device, augmented and normalised, on a GPU one ahead of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from raylab.data.augment import ClipTransform
from raylab.data.dataset import Batch, EncodedBatch
from raylab.data.store.jpeg import decode_on


class Prefetch:
    """Brings batches to one device.

    On a GPU, the copy and the transform of the next batch run on a stream of their own while the model's stream
    computes this one. The host comes no further: with more batches under way it would fill the GPU's memory.
    On the CPU, each batch is transformed when it is asked for.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(
        self, batches: Iterable[Batch | EncodedBatch], transform: ClipTransform, epoch: int
    ) -> Iterator[Batch]:
        """Batches as the model takes them.

        Args:
            batches: uint8 frames or JPEG, for a GPU in page-locked memory.
            transform: what makes floats of them.
            epoch: whose draw of augmentations to use.

        Yields:
            `video` float32 (B, T, 3, size, size), `mask`, `labels` and `outputs` on the device, the rest as it came. On
            a GPU they may be used on the stream that is current when they are taken.
        """
        if self.stream is None:
            for batch in batches:
                yield self._prepare(batch, transform, epoch)
            return
        ahead: tuple[Batch, torch.cuda.Event] | None = None
        computed: torch.cuda.Event | None = None
        for batch in batches:
            with torch.cuda.stream(self.stream):
                following = self._prepare(batch, transform, epoch), self.stream.record_event()
            if ahead:
                yield self._hand_over(*ahead)
                # The caller has queued its step: wait for the one before it.
                if computed:
                    computed.synchronize()
                computed = torch.cuda.current_stream(self.device).record_event()
            ahead = following
        if ahead:
            yield self._hand_over(*ahead)

    def _prepare(self, batch: Batch | EncodedBatch, transform: ClipTransform, epoch: int) -> Batch:
        prepared: Batch = {"labels": self._send(batch["labels"]), "ids": batch["ids"]}
        if (video := self._pixels(batch)) is not None:
            shown = batch.get("missing", range(len(batch["ids"])))
            prepared["video"] = transform(video, [batch["ids"][place] for place in shown], epoch)
        if "mask" in batch:
            prepared["mask"] = batch["mask"].to(self.device, non_blocking=True)
        if "outputs" in batch:
            prepared["outputs"] = self._send(batch["outputs"])
        if "keys" in batch:
            prepared["keys"] = batch["keys"]
        if "missing" in batch:
            prepared["missing"] = batch["missing"]
        return prepared

    def _send(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device, non_blocking=True) for name, value in tensors.items()}

    def _pixels(self, batch: Batch | EncodedBatch) -> Tensor | None:
        """uint8 (B, T, 3, S, S) on the device; None where outputs replace those of all clips."""
        if "video" in batch:
            return batch["video"].to(self.device, non_blocking=True)
        if "images" not in batch:
            return None
        lengths = batch["lengths"]
        there = lengths > 0
        images = torch.split(batch["images"], lengths[there].tolist())
        squares = decode_on(self.device, images, batch["side"])
        if there.all():
            return squares.view(*lengths.shape, *squares.shape[1:])
        video = squares.new_zeros(*lengths.shape, *squares.shape[1:])
        video[there] = squares
        return video

    def _hand_over(self, batch: Batch, ready: torch.cuda.Event) -> Batch:
        """From this stream to the current one, which waits until it is `ready`."""
        model = torch.cuda.current_stream(self.device)
        model.wait_event(ready)
        whole = [batch[name] for name in ("video", "mask") if name in batch]  # type: ignore[literal-required]
        for tensor in (*whole, *batch["labels"].values(), *batch.get("outputs", {}).values()):
            tensor.record_stream(model)  # or its memory would be given to a later batch while the model reads it
        return batch
