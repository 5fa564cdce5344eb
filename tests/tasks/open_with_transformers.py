"""What others see of a checkpoint: opens folders with transformers alone, in a process without raylab.

    python -I open_with_transformers.py FILE CHECKPOINT [FOLDER …]

FILE, safetensors, has `video`, float (B, T, 3, H, W), and the raw frames of one video, `frames`, uint8 (T, H, W, 3). It
is given the `logits` of CHECKPOINT, and what each folder's image processor makes of the frames, `pixels/0` and so on.
Prints the names of the classes.
"""

import json
import sys

sys.modules["raylab"] = None  # an import of it fails

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoImageProcessor, VideoMAEForVideoClassification  # noqa: E402

torch.set_num_threads(1)
file, *folders = sys.argv[1:]
given = load_file(file)
model, info = VideoMAEForVideoClassification.from_pretrained(folders[0], output_loading_info=True)
assert not any(info.values()), info
with torch.no_grad():
    found = {"logits": model.eval()(given["video"]).logits}
for number, folder in enumerate(folders):
    processor = AutoImageProcessor.from_pretrained(folder)
    found[f"pixels/{number}"] = processor(list(given["frames"].numpy()), return_tensors="pt")["pixel_values"]
assert [name for name in sys.modules if name.partition(".")[0] == "raylab"] == ["raylab"]
save_file({name: value.contiguous() for name, value in {**given, **found}.items()}, file)
print(json.dumps(model.config.id2label))
