#!/usr/bin/env bash
# DAGN's ablation in one command: both stages, with and without an adversary and with all
# choices of features, and their table in FOLDER/table.md. The same command goes on where
# it was interrupted.
#
#   bash launch/dagn_ablation.sh FOLDER [--config.FIELD=VALUE ...]
#
# The fields are changed in every training. STAGE1 and STAGE2 are the configs, by default
# those of the quickstart.
set -euo pipefail
if [[ $# -eq 0 || "$1" == -* ]]; then
  echo "error: give a folder: bash launch/dagn_ablation.sh runs/dagn_ablation" >&2
  exit 2
fi
folder=$1
shift
stage1=${STAGE1:-configs/dagn_stage1_quickstart.py}
stage2=${STAGE2:-configs/dagn_quickstart.py}
mkdir -p "$folder"

train() { # CONFIG WORKDIR FLAGS...
  local config=$1 workdir=$2
  shift 2
  printf '\n== %s -> %s\n' "$config" "$workdir"
  python -m cir_jax.main --config="$config" --workdir="$workdir" "$@"
}

# What the table calls each, its features, and the first stage that they come from.
variants=(
  "base none adversarial"
  "sensitive sensitive adversarial"
  "insensitive insensitive adversarial"
  "both both adversarial"
  "insensitive_plain insensitive plain"
  "both_plain both plain"
)
for form in adversarial plain; do
  train "$stage1:$form" "$folder/stage1_$form" \
    --config.data.records="$folder/records1" "$@"
  python -m cir_jax.feature_scores "$folder/stage1_$form" |
    tee "$folder/stage1_$form/features.md"
done
weights=()
for variant in "${variants[@]}"; do
  read -r name guidance form <<<"$variant"
  start=()
  if [[ "$guidance" != none ]]; then
    start=(--config.init_from="$folder/stage1_$form")
  fi
  train "$stage2:$guidance" "$folder/$name" "${start[@]}" \
    --config.data.records="$folder/records2" "$@"
  weights+=("$name=$folder/$name")
done
cir evaluate --weights "$(IFS=,; echo "${weights[*]}")" --downstream keypoints \
  --markdown "$folder/table.md"
