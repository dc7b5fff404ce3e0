#!/usr/bin/env bash
# Every run behind notebook 08a: bash tools/estimator.sh [processes] [results]. A finished run is not run again.
set -euo pipefail
processes=${1:-2}
results=${2:-results/estimator.csv}
export OMP_NUM_THREADS=1
runs() { for seed in $1; do for objective in $2; do echo "--objective $objective --seed $seed"; done; done; }
{
  runs "0 1 2 3 4" "crop heuristic random_tau hardest"
  runs "10 11 12 13 14 15 16 17 18 19" "hardest random_tau heuristic"
  runs "0 1 2 3 4" "none paper implicit implicit_rounds implicit_shared trajectory all_layers max_loss min_loss hardest_affine easiest aligned"
} | xargs -P "$processes" -I{} sh -c "ia-estimator {} --results $results | tail -n 1"
