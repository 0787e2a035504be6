#!/usr/bin/env bash
# A laptop: the same command as without a cluster, on as many processes as it has cores.
# OMP_NUM_THREADS=1 gives every process one thread; a run without --cluster under the same setting
# gives the same bytes.
set -euo pipefail
export OMP_NUM_THREADS=1
reta distill "${DATA:-digits}" --cluster auto --out "${OUT:-runs/laptop}" "$@"
reta train "${OUT:-runs/laptop}" --cluster auto
reta verify "${OUT:-runs/laptop}"
