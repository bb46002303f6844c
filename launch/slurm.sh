#!/usr/bin/env bash
#SBATCH --job-name=slpojax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
# One process per GPU: sbatch --nodes=2 launch/slurm.sh --config=... Run from the root of the repository, where .venv is
# installed with the extras cuda13 and logging.
set -euo pipefail
srun .venv/bin/python -m slpojax.train "$@" --config.mesh.distributed=true
