"""Reads ``.beton`` files in a process of its own, with little memory and without torch.

Takes one path a line; answers with one line of JSON: exit code and error of the whole file, or
for each sample a list with a hash of each field's value, or the error of that sample.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import traceback

MEMORY_BYTES = 2**31
resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

from fastrot.data.beton import Kind  # noqa: E402 - under the limit
from fastrot.data.beton.dataset import BetonDataset  # noqa: E402
from fastrot.data.dataset import BadSampleError  # noqa: E402
from fastrot.errors import FastrotError  # noqa: E402


def short_hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def look_at_sample(samples: BetonDataset, sample: int) -> dict[str, object]:
    try:
        pixels = samples.decode(sample)
        values = [short_hash((pixels.shape, pixels.tobytes()))]
        for field in samples.file.fields:
            if field.kind is not Kind.IMAGE:
                value = samples.file.value(sample, field.name)
                values.append(short_hash(value.tobytes() if hasattr(value, "tobytes") else value))
        values.append(short_hash(int(samples.labels[sample])))
    except BadSampleError as error:
        return {"code": error.exit_code, "error": str(error)}
    return {"values": values}


def look(path: str) -> dict[str, object]:
    try:
        samples = BetonDataset(path)
        try:
            found = [look_at_sample(samples, sample) for sample in range(len(samples))]
            return {"samples": found, "names": samples.class_names}
        finally:
            samples.close()
    except FastrotError as error:
        return {"code": error.exit_code, "error": str(error)}
    except BaseException:
        return {"code": "crash", "error": traceback.format_exc()}


for line in sys.stdin:
    answer = look(line.rstrip("\n"))
    answer["torch"] = "torch" in sys.modules
    print(json.dumps(answer), flush=True)
