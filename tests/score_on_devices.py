"""Prints an evaluation's rows without times; run by test_evaluate.py.

score_on_devices.py WEIGHTS FOLDER [COORDINATOR PROCESSES NUMBER]
"""

import json
import sys
from pathlib import Path

import jax

weights, folder, *cluster = sys.argv[1:]
if cluster:
    coordinator, processes, number = cluster
    jax.distributed.initialize(coordinator, int(processes), int(number))

from cir_jax import Restorer  # noqa: E402, after the cluster is known
from cir_jax.compression import compressions  # noqa: E402
from cir_jax.evaluate import evaluate  # noqa: E402
from cir_jax.image_sets import ImageFolder, PairedFolder  # noqa: E402

crops = ImageFolder(Path(folder))
report = evaluate(
    {"light": Restorer(weights, tile=None)},
    {"crops": crops, "pairs": PairedFolder(crops, "nothing", crops.folder)},
    [*compressions("jpeg", (10, 40)), *compressions("noise", (25,))],
)
content = report.to_json()
for row in (*content["rows"], *content["images"]):
    del row["seconds"]
print(json.dumps({"devices": jax.device_count(), "content": content}))
