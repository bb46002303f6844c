#!/usr/bin/env bash
#SBATCH --job-name=slpojax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
#SBATCH --requeue
# One process per GPU. Options before the script win over those above, as for nodes of four GPUs and a day:
#     sbatch --nodes=2 --ntasks-per-node=4 --time=1-0 launch/slurm.sh --config=...
# Run from the root of the repository, where .venv is installed with the extras cuda13 and logging. A job that was
# preempted is queued again and goes on from its newest checkpoint; one whose time is up is sent SIGTERM five minutes
# before, and goes on when it is submitted again. PROGRAM=slpojax.online starts another program; `bash launch/slurm.sh
# --dry-run ...` prints the command of the job.
set -euo pipefail
export TF_CPP_MIN_LOG_LEVEL=1  # what processes say of each other
dry=
if [ "${1-}" = --dry-run ]; then dry=1 && shift; fi
command=(srun .venv/bin/python -m "${PROGRAM:-slpojax.train}" "$@" --config.mesh.distributed=true)
if [ "$dry" ]; then printf '%q ' "${command[@]}" && echo; else "${command[@]}"; fi
