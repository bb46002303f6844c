#!/usr/bin/env bash
# A slice of Cloud TPUs from nothing to a run, and back to nothing:
#
#     export TPU=name ZONE=us-west4-a
#     TYPE=v5litepod-16 launch/tpu_vm.sh create            ask for a slice and wait until it is there; SPOT=1 for a spot one
#     launch/tpu_vm.sh run --config=configs/slpo_hh.py     send the code, set up every host, start the run; again: go on
#     launch/tpu_vm.sh logs                                what host 0 prints; HOST=3 for another
#     launch/tpu_vm.sh stop                                every host ends its step, saves the same state and ends
#     launch/tpu_vm.sh delete                              a slice is paid for until it is deleted
#     TYPE=v5litepod-16 SPOT=1 launch/tpu_vm.sh keep --config=configs/slpo_hh.py
#                                                          all of it, again whenever the slice is taken away, to the run's end
#
# `launch/tpu_vm.sh --dry-run run ...` prints the commands of a verb and runs none. The run goes on when this terminal is
# closed (`keep` does not). PROGRAM=slpojax.online starts another program. What is sent is the code alone: data, models and
# output lie on storage that every host sees.
# shellcheck disable=SC2016 # what stands in single quotes is for the hosts to expand
set -euo pipefail
cd "$(dirname "$0")/.."
dry=
if [ "${1-}" = --dry-run ]; then dry=1 && shift; fi
verb=${1-}
[ $# = 0 ] || shift
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"

tpus() { # print or run a command of gcloud
    local command=(gcloud compute tpus "$@" --zone="$ZONE")
    if [ "$dry" ]; then printf '%q ' "${command[@]}" && echo; else "${command[@]}"; fi
}
on() { tpus tpu-vm ssh "$TPU" --worker="$1" --command="$2"; }
say() { echo "tpu_vm.sh: $*" >&2; }

version() { # the system that a type of slice wants
    case $1 in
        v6e-*) echo v2-alpha-tpuv6e ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v4-*) echo tpu-ubuntu2204-base ;;
        *) say "no system is known for TYPE=$1: set VERSION (gcloud compute tpus versions list)" && return 1 ;;
    esac
}

state() { # of the request: ACTIVE where the slice is there, NONE where nothing was asked for
    tpus queued-resources describe "$TPU" --format='value(state.state)' 2> /dev/null || echo NONE
}

create() {
    local spot=() system
    if [ "${SPOT-}" ]; then spot=(--spot); fi
    system=${VERSION:-$(version "${TYPE:?the type of the slice, such as v5litepod-16}")}
    tpus queued-resources create "$TPU" --node-id="$TPU" --accelerator-type="$TYPE" --runtime-version="$system" "${spot[@]}"
}

wait_for() { # the slice
    local now
    if [ "$dry" ]; then state && return; fi
    until now=$(state) && [ "$now" = ACTIVE ]; do
        case $now in FAILED | SUSPENDED | NONE) say "the request for $TPU is $now" && return 1 ;; esac
        say "the request for $TPU is $now; asking again in ${EVERY:-60} s"
        sleep "${EVERY:-60}"
    done
}

# Whether a run is under way on a host; a process that has ended may still have a number.
is_running='[ ! -e slpojax/run.status ] && [ -e slpojax/run.pid ] && kill -0 "$(cat slpojax/run.pid)" 2> /dev/null'

delete() { tpus queued-resources delete "$TPU" --force --quiet; }

run() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cat > "$work/run.sh" << RUN
#!/usr/bin/env bash
# Written by launch/tpu_vm.sh. A host that fails is tried five times; the others wait for it, or fail and follow.
cd "\$(dirname "\$0")"
export TF_CPP_MIN_LOG_LEVEL=1 # what hosts say of each other
stopped=
trap 'stopped=1' TERM # the program gets it as well; this runs behind its end
for try in 1 2 3 4 5; do
    status=0
    .venv/bin/python -m ${PROGRAM:-slpojax.train} $(printf '%q ' "$@")--config.mesh.distributed=true || status=\$?
    if [ "\$status" = 0 ] || [ "\$stopped" ]; then break; fi
    echo "try \$try ended with status \$status"
    sleep ${PAUSE:-30}
done
echo "\$status" > run.status
RUN
    cat > "$work/install.sh" << 'INSTALL'
#!/usr/bin/env bash
# Written by launch/tpu_vm.sh: an environment with a Python that slpojax takes, unless there is one.
set -euo pipefail
cd "$(dirname "$0")"
[ .venv/.installed -nt pyproject.toml ] && exit
for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
        "$python" -m venv .venv && .venv/bin/pip install -q -e '.[tpu,logging,buckets]' && touch .venv/.installed
        exit
    fi
done
echo 'slpojax needs Python 3.11 or newer; on Ubuntu 22.04: sudo apt-get install python3.11-venv' >&2
exit 1
INSTALL
    # What git tracks, and Python files beside it such as a configuration of your own.
    { git ls-files -z && git ls-files -z --others --exclude-standard '*.py'; } |
        tar --null --files-from=- --ignore-failed-read -cf "$work/slpojax.tar"
    tar -rf "$work/slpojax.tar" -C "$work" run.sh install.sh
    if [ "$dry" ]; then sed 's/^/# run.sh: /' "$work/run.sh"; fi
    tpus tpu-vm scp "$work/slpojax.tar" "$TPU:" --worker=all
    on all 'mkdir -p slpojax && tar -xf slpojax.tar -C slpojax && bash slpojax/install.sh'
    on all "if $is_running; then"'
    echo "a run is under way on this host; end it first: launch/tpu_vm.sh stop" >&2; exit 1; fi
rm -f slpojax/run.status
nohup setsid bash slpojax/run.sh > slpojax/run.log 2>&1 < /dev/null & echo $! > slpojax/run.pid'
}

# The run on a host: its status where it has ended, running, or none.
where_it_is="if [ -e slpojax/run.status ]; then cat slpojax/run.status
elif $is_running; then echo running; else echo none; fi"

keep() {
    local now
    if [ "$dry" ]; then
        state
        create
        run "$@"
        on 0 "$where_it_is"
        return
    fi
    while :; do
        case $(state) in
            NONE) create ;;
            FAILED | SUSPENDED)
                say "the slice was taken away, or never given; asking for another"
                delete
                create
                ;;
            ACTIVE)
                now=$(on 0 "$where_it_is" || echo unreachable)
                case $now in
                    0) say "the run has ended; delete the slice: launch/tpu_vm.sh delete" && return ;;
                    none) launch/tpu_vm.sh run "$@" || say "not started; trying again in ${EVERY:-60} s" ;;
                    running | unreachable) ;;
                    *) say "the run ended with status $now: launch/tpu_vm.sh logs" && return 1 ;;
                esac
                ;;
        esac
        sleep "${EVERY:-60}"
    done
}

case $verb in
    create)
        create
        wait_for
        ;;
    run)
        run "$@"
        if [ -z "$dry" ]; then say "started; to watch it: launch/tpu_vm.sh logs"; fi
        ;;
    logs) on "${HOST:-0}" 'tail -n 100 -f slpojax/run.log' ;;
    stop) on all 'kill -- "-$(cat slpojax/run.pid)"' ;;
    delete) delete ;;
    keep) keep "$@" ;;
    *)
        sed -n '2,/^# shellcheck/{/^# shellcheck/d;s/^# \{0,1\}//p;}' launch/tpu_vm.sh >&2
        exit 2
        ;;
esac
