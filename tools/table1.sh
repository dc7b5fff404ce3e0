#!/usr/bin/env bash
# Every run behind Table 1: bash tools/table1.sh [processes] [methods] [seeds] [frac]. A finished run is not run again.
set -euo pipefail
processes=${1:-2}
methods=${2:-none crop heuristic randaugment trivialaugment random_tau paper implicit ours}
seeds=${3:-0 1 2 3 4}
frac=${4:-0.01}
export OMP_NUM_THREADS=1
for seed in $seeds; do for method in $methods; do echo "--method $method --seed $seed --frac $frac"; done; done |
  xargs -P "$processes" -I{} sh -c 'ia-mnist {} | tail -n 1'
