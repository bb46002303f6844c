#!/usr/bin/env bash
# Run the training program as a workload of XPK (https://github.com/AI-Hypercomputer/xpk). IMAGE is what
# launch/Dockerfile builds. A workload that fails or is preempted is started again, and goes on from its newest checkpoint.
set -euo pipefail
: "${CLUSTER:?the cluster}" "${ZONE:?its zone}" "${TPU_TYPE:?such as v5litepod-64}" "${IMAGE:?a container image}"
xpk workload create \
    --cluster="$CLUSTER" --zone="$ZONE" --tpu-type="$TPU_TYPE" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" \
    --workload="${WORKLOAD:-slpojax-$(date +%m%d-%H%M)}" --max-restarts="${RESTARTS:-10}" \
    --command="python -m slpojax.train $(printf '%q ' "$@") --config.mesh.distributed=true"
