#!/usr/bin/env bash
# Runs fuzz targets one after the other, each for so many seconds, from the seeds and from what earlier runs found.
#
#   tests/fuzz/run.sh [SECONDS [TARGET…]]        default: 600 seconds, all targets
#
# Ends with 1 at the first crash; the input that causes it is left in artifacts/TARGET.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-600}
shift $(($# > 0))
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo +nightly fuzz list --fuzz-dir .)
for target in "${targets[@]}"; do
    echo "== $target"
    mkdir -p "corpus/$target"
    # A single allocation of more than 256 MiB counts as a crash: no seed is larger than a few kilobytes.
    cargo +nightly fuzz run --fuzz-dir . -O "$target" "corpus/$target" "seeds/$target" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=256 -print_final_stats=1 -verbosity=0
done
