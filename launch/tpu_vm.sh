#!/usr/bin/env bash
# Run the training program on every host of a Cloud TPU slice: TPU=name ZONE=zone launch/tpu_vm.sh --config=...
# The run goes on when this terminal is closed; call the script again to start it anew, or on a slice made anew, and it
# goes on from its newest checkpoint. What is sent is the code alone: data, models and output lie on shared storage.
set -euo pipefail
: "${TPU:?the name of the TPU VM}" "${ZONE:?its zone}"
cd "$(dirname "$0")/.."
on() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/run.sh" <<RUN
#!/usr/bin/env bash
# Written by launch/tpu_vm.sh. A host that fails is tried five times; the others wait for it, or fail and follow.
cd "\$(dirname "\$0")"
export TF_CPP_MIN_LOG_LEVEL=1  # what hosts say of each other
for try in 1 2 3 4 5; do
    .venv/bin/python -m slpojax.train $(printf '%q ' "$@") --config.mesh.distributed=true && break
    echo "try \$try ended with status \$?"
    sleep 30
done
RUN
cat > "$work/install.sh" <<'INSTALL'
#!/usr/bin/env bash
# Written by launch/tpu_vm.sh: an environment with a Python that slpojax takes, unless there is one.
set -euo pipefail
cd "$(dirname "$0")"
[ .venv/.installed -nt pyproject.toml ] && exit
for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
        "$python" -m venv .venv && .venv/bin/pip install -q -e '.[tpu,logging]' && touch .venv/.installed
        exit
    fi
done
echo 'slpojax needs Python 3.11 or newer; on Ubuntu 22.04: sudo apt-get install python3.11-venv' >&2
exit 1
INSTALL
# What git tracks, and Python files beside it such as a configuration of your own.
{ git ls-files -z; git ls-files -z --others --exclude-standard '*.py'; } |
    tar --null --files-from=- --ignore-failed-read -cf "$work/slpojax.tar"
tar -rf "$work/slpojax.tar" -C "$work" run.sh install.sh
gcloud compute tpus tpu-vm scp "$work/slpojax.tar" "$TPU:" --zone="$ZONE" --worker=all
on all 'mkdir -p slpojax && tar -xf slpojax.tar -C slpojax && bash slpojax/install.sh'
on all 'if [ -e slpojax/run.pid ] && kill -0 "$(cat slpojax/run.pid)" 2> /dev/null; then
            echo "a run is under way on this host; end it first: kill -- -$(cat slpojax/run.pid)" >&2; exit 1; fi
        nohup setsid bash slpojax/run.sh > slpojax/run.log 2>&1 < /dev/null & echo $! > slpojax/run.pid'
echo "started; to watch it: gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=0 --command='tail -f slpojax/run.log'"
