#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any number of hosts, and goes on when it is preempted.
#
#   PROJECT=my-project BUCKET=my-bucket launch/tpu_vm.sh run [--config.a.b=v ...]
#
# asks for the slice, waits for it, sets up every host and trains; asks again whenever
# the slice was taken away, and deletes it at the end. The loop may be interrupted and
# called again: the training goes on without it, but only it replaces and deletes slices.
# Its steps alone: upload, create, start, logs, delete.
# Needs gcloud, and its key in an agent: ssh-add ~/.ssh/google_compute_engine.
# Not run on a TPU yet.
set -euo pipefail

# Replace these, here or in the environment.
PROJECT=${PROJECT:-}                      # the Google Cloud project that pays
BUCKET=${BUCKET:-}                        # without gs://; the hosts may write to it
ZONE=${ZONE:-us-west4-a}
ACCELERATOR=${ACCELERATOR:-v5litepod-16}  # 4 hosts of 4 chips
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}   # the image that fits the accelerator
TIER=${TIER---spot}                       # TIER= for what is not preempted
NAME=${NAME:-cir}                         # of the slice
CONFIG=${CONFIG:-configs/promptcir.py:offline}
WORKDIR=${WORKDIR:-runs/stage1}           # below runs/ of the bucket; records: data/
GCSFUSE=${GCSFUSE:-3.6.0}                 # version
POLL=${POLL:-60}                          # seconds
FLAGS=("${@:2}")

# ------------------------------------------------------------------ on every host
# Each is sent as the text that stands here.

set_up() { # mounts the bucket and starts the training, unless it runs
  set -euo pipefail
  sudo systemctl reset-failed cir 2>/dev/null || true
  [ "$(systemctl show --property=SubState --value cir)" = dead ] || return 0
  if ! command -v gcsfuse >/dev/null; then
    releases=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download
    curl -fsSLo gcsfuse.deb "$releases/v$GCSFUSE/gcsfuse_${GCSFUSE}_amd64.deb"
    sudo apt-get -yqq -o DPkg::Lock::Timeout=600 install ./gcsfuse.deb
  fi
  mkdir -p ~/bucket
  # Services survive the ssh session, and end in this order when the host is taken away:
  # first the training, with SIGTERM, then the bucket that it saves to.
  mountpoint -q ~/bucket || sudo systemd-run --unit=bucket --collect \
    --uid="$(id -un)" --property=After=network-online.target gcsfuse --foreground \
    --implicit-dirs --rename-dir-limit=10000 "$BUCKET" ~/bucket
  { declare -p NAME CONFIG WORKDIR FLAGS && declare -f work && echo work; } >~/work.sh
  # The others fail when one host does: all start again, unless the usage is wrong (2).
  sudo systemd-run --unit=cir --uid="$(id -un)" --remain-after-exit \
    --property=After=bucket.service --property=LimitMEMLOCK=infinity \
    --property=Restart=on-failure --property=RestartPreventExitStatus=2 \
    --property=RestartSec=30 --property=StartLimitIntervalSec=3600 \
    --property=StartLimitBurst=5 bash ~/work.sh
}

work() { # installs the project and trains
  set -euo pipefail
  exec >>~/cir.log 2>&1
  timeout 60 bash -c 'until mountpoint -q ~/bucket; do sleep 1; done' ||
    { echo "the bucket is not mounted: see journalctl --unit=bucket" && exit 1; }
  mkdir -p ~/cir_jax ~/bucket/data ~/bucket/"$WORKDIR"
  trap 'cp ~/cir.log ~/bucket/"$WORKDIR/$(hostname).log"' EXIT
  cd ~/cir_jax
  tar -xzf ~/bucket/code/"$NAME.tar.gz"
  ln -sfn ~/bucket/data data
  ln -sfn ~/bucket/runs runs
  python3 -m pip install --quiet --user uv # the image's own Python is too old
  ~/.local/bin/uv venv --quiet --allow-existing --python=3.12
  ~/.local/bin/uv pip install --quiet --editable='.[tpu]'
  touch started
  .venv/bin/python -m cir_jax.main --config="$CONFIG" --workdir="$WORKDIR" --distributed=on "${FLAGS[@]}"
  # Where one host is stopped all save and exit with 0: only scores mean the end.
  [ "$WORKDIR/scores.json" -nt started ]
}

# ------------------------------------------------------------------ on this machine
tpus() { gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE" --quiet; }
on_all() { tpus tpu-vm ssh "$NAME" --worker=all --command="$1"; }

upload() { # the tracked files, as they are now
  git ls-files -z | tar --null --files-from=- -czf - |
    gcloud storage cp - "gs://$BUCKET/code/$NAME.tar.gz" --project="$PROJECT"
}
create() {
  tpus queued-resources create "$NAME" --node-id="$NAME" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" \
    --scopes=cloud-platform ${TIER:+"$TIER"}
}
start() {
  on_all "$(declare -p BUCKET NAME CONFIG WORKDIR FLAGS GCSFUSE)
$(declare -f set_up work)
set_up"
}
logs() { on_all "hostname; tail -n 30 cir.log"; }
delete() { tpus queued-resources delete "$NAME" --force; }

slice() { # its state; nothing where there is none
  tpus queued-resources list --filter="name~/$NAME\$" --format="value(state.state)" ||
    echo unknown
}
training() { # the states of the hosts' services, each once
  local states
  states=$(on_all "systemctl show --property=SubState --value cir") || states=unknown
  sort -u <<<"$states"
}

run() {
  local now before=
  upload
  while true; do
    now=$(slice)
    [ "$now" != ACTIVE ] || now="ACTIVE, training $(training | paste -sd ' ' -)"
    [ "$now" = "$before" ] || echo "$(date +%T) slice $NAME: ${now:-none}"
    before=$now
    case $now in # what fails is tried again in the next round
      "") create || true ;;
      SUSPENDED) delete || true ;; # preempted
      FAILED) tpus queued-resources describe "$NAME" && return 1 ;;
      "ACTIVE, training exited") delete && return ;;
      *training*failed*) # an idle slice costs; the whole log is in the bucket
        logs || true
        delete && return 1
        ;;
      *training*dead*) start || true ;; # new, or restarted for maintenance
    esac
    sleep "$POLL"
  done
}

refuse() { echo "error: $1" >&2 && exit 2; }
[ -n "$PROJECT" ] || refuse "PROJECT is not set: give PROJECT=my-project $0 run"
[ -n "$BUCKET" ] || refuse "BUCKET is not set: give BUCKET=my-bucket $0 run"
cd "$(dirname "$0")/.."
case ${1:-} in
  run | upload | create | start | logs | delete) "$1" ;;
  *) refuse "'${1:-}' is no step: give run, upload, create, start, logs or delete" ;;
esac
