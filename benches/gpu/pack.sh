#!/usr/bin/env bash
# Builds what benches/gpu/run.sh runs, and packs it into one folder to be copied to a machine with a GPU: programs without
# symbols, compressed. Needs `cargo xtask setup-cuda` before (docs/gpu.md).
#
#   benches/gpu/pack.sh [FOLDER]        target/gpu without an argument
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${1:-target/gpu}"
eval "$(cargo xtask setup-cuda)"
mkdir -p "$out"
options=(--release -p peft -p peft-bench -p peft-ops -p peft-train --features peft/cuda,peft/cpu)
programs=$(cargo test "${options[@]}" --test on_gpus --bin peft-bench --no-run --message-format=json-render-diagnostics \
    | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"):
        print(message["target"]["name"], message["executable"])')
cargo build "${options[@]}" --bin peft-bench --example finetune_llama
target=$(cargo metadata --no-deps --format-version 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
on_gpus=$(echo "$programs" | awk '$1 == "on_gpus" { print $2 }')
for pair in "on_gpus=$on_gpus" "peft-bench=$target/release/peft-bench"; do
    strip -o "$out/${pair%%=*}" "${pair#*=}"
    xz -T0 -3 -f "$out/${pair%%=*}"
done
cp benches/gpu/run.sh "$out/run.sh"
ls -l "$out"
