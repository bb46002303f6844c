#!/usr/bin/env bash
# Run a program as a workload of XPK (https://github.com/AI-Hypercomputer/xpk), which makes a JobSet of it on GKE:
#
#     CLUSTER=name ZONE=zone TPU_TYPE=v5litepod-64 IMAGE=... launch/gke_xpk.sh --config=configs/slpo_hh.py
#
# IMAGE is what launch/Dockerfile builds. A workload that fails or is preempted is started again, and goes on from its
# newest checkpoint. PROGRAM=slpojax.online starts another program; `--dry-run` before its arguments prints the command.
set -euo pipefail
: "${CLUSTER:?the cluster}" "${ZONE:?its zone}" "${TPU_TYPE:?such as v5litepod-64}" "${IMAGE:?a container image}"
dry=
if [ "${1-}" = --dry-run ]; then dry=1 && shift; fi
command=(xpk workload create
    --cluster="$CLUSTER" --zone="$ZONE" --tpu-type="$TPU_TYPE" --num-slices="${SLICES:-1}" --docker-image="$IMAGE"
    --workload="${WORKLOAD:-slpojax-$(date +%m%d-%H%M)}" --max-restarts="${RESTARTS:-10}"
    --command="python -m ${PROGRAM:-slpojax.train} $(printf '%q ' "$@")--config.mesh.distributed=true")
if [ "$dry" ]; then printf '%q ' "${command[@]}" && echo; else "${command[@]}"; fi
