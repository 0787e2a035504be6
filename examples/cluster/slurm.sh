#!/usr/bin/env bash
#SBATCH --job-name=reta
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# A Slurm allocation: one Ray process per node, the driver beside the first. --out lies on the file
# system all nodes share. When time is up, or the job is requeued, the same script continues.
#   DATA=/data/imagenet OUT=/scratch/me/run sbatch examples/cluster/slurm.sh
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*} # no pipe to head(1): scontrol may still be writing when it leaves
port=$((10000 + SLURM_JOB_ID % 20000))

srun --nodes=1 --ntasks=1 --overlap -w "$head" \
  ray start --head --node-ip-address="$head" --port="$port" --block &
sleep "${RAY_WAIT:-15}"
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
  srun --nodes="$others" --ntasks="$others" --overlap --exclude="$head" \
    ray start --address="$head:$port" --block &
  sleep "${RAY_WAIT:-15}"
fi

# The batch shell gets Slurm's TERM 120 seconds before the end and hands it on; reta keeps the state
# of what is under way and leaves with 143.
reta distill "${DATA:?}" --effort paper --cluster "$head:$port" --out "${OUT:?}" "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM
status=0
wait "$driver" || status=$?
if [ "$status" -gt 128 ] && kill -0 "$driver" 2>/dev/null; then
  status=0
  wait "$driver" || status=$?
fi
[ "$status" = 0 ] && reta train "$OUT" --cluster "$head:$port"
exit "$status"
