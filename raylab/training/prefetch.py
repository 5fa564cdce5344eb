"""From the loader to the model: batches on the device, augmented and normalised, on a GPU one ahead of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

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
            `video` float32 (B, T, 3, size, size), `labels` and `outputs` on the device, the rest as it came. On a GPU
            they may be used on the stream that is current when they are taken.
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
        if "video" in batch:
            video = batch["video"].to(self.device, non_blocking=True)
        else:
            lengths = batch["lengths"]
            images = torch.split(batch["images"], lengths.flatten().tolist())
            squares = decode_on(self.device, images, batch["side"])
            video = squares.view(*lengths.shape, *squares.shape[1:])
        labels = {head: value.to(self.device, non_blocking=True) for head, value in batch["labels"].items()}
        prepared: Batch = {"video": transform(video, batch["ids"], epoch), "labels": labels, "ids": batch["ids"]}
        if "keys" in batch:
            prepared["keys"] = batch["keys"]
        if "outputs" in batch:
            outputs = batch["outputs"]
            prepared["outputs"] = {name: value.to(self.device, non_blocking=True) for name, value in outputs.items()}
        return prepared

    def _hand_over(self, batch: Batch, ready: torch.cuda.Event) -> Batch:
        """From this stream to the current one, which waits until it is `ready`."""
        model = torch.cuda.current_stream(self.device)
        model.wait_event(ready)
        for tensor in (batch["video"], *batch["labels"].values(), *batch.get("outputs", {}).values()):
            tensor.record_stream(model)  # or its memory would be given to a later batch while the model reads it
        return batch
