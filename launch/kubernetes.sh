#!/usr/bin/env bash
# Run a program as a Job of Kubernetes, a pod for each host, without XPK: on one slice of TPUs on GKE, or on GPUs anywhere.
#
#     HOSTS=4 TPU=tpu-v5-lite-podslice TOPOLOGY=4x4 CHIPS=4 IMAGE=... launch/kubernetes.sh --config=configs/slpo_hh.py
#     HOSTS=2 GPUS=8 IMAGE=... launch/kubernetes.sh --config=configs/slpo_hh.py
#
# IMAGE is what launch/Dockerfile builds (for GPUs with EXTRA=cuda13). A pod that fails, or whose node is taken away, is
# started again; the others end as soon as it comes, are started again, too, and all go on from the newest checkpoint.
# config.output and the data must be where all pods see them, such as a bucket that ACCOUNT, a service account of
# Kubernetes, may write to. NAME names the job, PROGRAM=slpojax.online starts another program, RESTARTS (10) says how
# often the hosts may be started again. `--dry-run` before its arguments prints the manifest.
set -euo pipefail
: "${HOSTS:?how many pods}" "${IMAGE:?a container image}"
dry=
if [ "${1-}" = --dry-run ]; then dry=1 && shift; fi
name=${NAME:-slpojax-$(date +%m%d-%H%M)}

# A word as YAML reads it, whatever it holds.
quoted() { local word=${1//\\/\\\\} && printf '"%s"' "${word//\"/\\\"}"; }

arguments=
for word in "$@" --config.mesh.distributed=true; do arguments+="$(quoted "$word"), "; done

# What a pod asks of its node, and how its process learns of the others: on TPUs GKE says it.
if [ "${TPU-}" ]; then
    : "${TOPOLOGY:?such as 4x4}" "${CHIPS:?of a host}"
    resource="google.com/tpu: ${CHIPS}"
    nodes="
      nodeSelector: {cloud.google.com/gke-tpu-accelerator: $(quoted "$TPU"), cloud.google.com/gke-tpu-topology: $(quoted "$TOPOLOGY")}"
    others='env: [{name: TF_CPP_MIN_LOG_LEVEL, value: "1"}]'
else
    resource="nvidia.com/gpu: ${GPUS:?of a host, or TPU}"
    nodes=
    others="env:
        - {name: JAX_COORDINATOR_ADDRESS, value: \"$name-0.$name:8476\"}
        - {name: JAX_NUM_PROCESSES, value: \"$HOSTS\"}
        - name: JAX_PROCESS_ID
          valueFrom: {fieldRef: {fieldPath: \"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}}"
fi

manifest="apiVersion: v1
kind: Service  # gives each pod a name that the others find: $name-0.$name
metadata: {name: $name}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {job-name: $name}
---
apiVersion: batch/v1
kind: Job
metadata: {name: $name}
spec:
  completionMode: Indexed
  completions: $HOSTS
  parallelism: $HOSTS
  backoffLimit: $((${RESTARTS:-10} * HOSTS))
  podFailurePolicy:
    rules:
    - action: Ignore  # a node that is taken away is no failure
      onPodConditions: [{type: DisruptionTarget}]
  template:
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: 300  # for the checkpoint that SIGTERM asks for
      serviceAccountName: $(quoted "${ACCOUNT:-default}")
      containers:
      - name: slpojax
        image: $(quoted "$IMAGE")
        command: [python, -m, $(quoted "${PROGRAM:-slpojax.train}")]
        args: [${arguments%, }]
        resources: {limits: {$resource}}
        $others$nodes"
if [ "$dry" ]; then echo "$manifest"; else kubectl apply -f - <<< "$manifest"; fi
