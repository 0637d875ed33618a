"""Times matrix products in PyTorch: a JSON object for each, on a line; prints the median seconds of each."""

import json
import os
import statistics
import sys
import time

import torch

SECONDS = 0.1

torch.set_num_threads(int(os.environ.get("RAYON_NUM_THREADS") or os.cpu_count()))
shape, left, right = None, None, None
for line in sys.stdin:
    asked = json.loads(line)
    if asked != shape:
        shape = asked
        left = torch.rand(shape["rows"], shape["inner"])
        if shape["transposed"]:
            right = torch.rand(shape["columns"], shape["inner"]).T
        else:
            right = torch.rand(shape["inner"], shape["columns"])
    times = []
    begin = time.perf_counter()
    with torch.no_grad():
        while len(times) < 3 or time.perf_counter() - begin < SECONDS:
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
    print(statistics.median(times), flush=True)
