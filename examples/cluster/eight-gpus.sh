#!/usr/bin/env bash
# One node with eight GPUs: every unit of work (a teacher, a block of 100 classes, a shard of labels,
# a student) has a GPU of its own. Ray finds the GPUs by itself.
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
reta distill "${DATA:?the folder of images}" --effort paper --cluster auto --out "${OUT:?the run folder}" "$@"
reta train "$OUT" --cluster auto
reta verify "$OUT"
