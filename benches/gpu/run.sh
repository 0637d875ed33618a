#!/usr/bin/env bash
# What is run on a machine with a GPU, from the folder that benches/gpu/pack.sh makes: conformance tests, whose result is
# written as JSON. No cargo and no network. `run.sh cpu` rehearses it on CubeCL's CPU runtime. Training steps are not
# measured by it yet.
#
#   ./run.sh [DEVICE] [OUT]             cuda and results.json without arguments
set -euo pipefail
cd "$(dirname "$0")"
device="${1:-cuda}"
out="${2:-results.json}"
for packed in *.xz; do
    [ -e "$packed" ] && xz -d -k -f "$packed"
done
chmod +x on_gpus peft-bench
card="none"
[ "$device" = cuda ] && card="$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)"
# Kernels are compiled on the way: a test that hangs must not eat the time of the rest.
tests() {
    PEFT_TEST_DEVICES="$device" RUST_TEST_THREADS=1 timeout "$1" ./on_gpus "${@:2}" >"tests.log" 2>&1 && echo true || echo false
}
if [ "$device" = cuda ]; then
    passed=$(tests 180 gradients merged quantized_base packed::)
else
    passed=$(tests 180 packed::)
fi
tail -n 3 tests.log
printf '{"date":"%s","device":"%s","card":"%s","tests_passed":%s}\n' "$(date -u +%FT%TZ)" "$device" "$card" "$passed" >"$out"
cat "$out"
[ "$passed" = true ]
