#!/usr/bin/env bash
# Run the training program on every host of a Cloud TPU slice: TPU=name ZONE=zone launch/tpu_vm.sh --config=...
set -euo pipefail
: "${TPU:?the name of the TPU VM}" "${ZONE:?its zone}"
cd "$(dirname "$0")/.."
on_all() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"; }

tar --exclude=./.git --exclude='./.venv*' --exclude=./output -czf - . > "${TMPDIR:-/tmp}/slpojax.tgz"
gcloud compute tpus tpu-vm scp "${TMPDIR:-/tmp}/slpojax.tgz" "$TPU:" --zone="$ZONE" --worker=all
on_all 'mkdir -p slpojax && tar -xzf slpojax.tgz -C slpojax && cd slpojax && python3 -m venv .venv && .venv/bin/pip install -q -e ".[tpu,logging]"'
on_all "cd slpojax && .venv/bin/python -m slpojax.train $(printf '%q ' "$@") --config.mesh.distributed=true"
