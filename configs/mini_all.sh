#!/bin/sh
# dossr-mini from an empty folder: photos, data set, five runs, the file that ships.
#   sh configs/mini_all.sh RUNS [SHARE]
# SHARE (default 1) scales the steps of every run: 0.001 is a trial of the whole recipe. Run again,
# it goes on where it was stopped. PHOTOS in the environment names a folder of photos to use
# instead of fetching them.
set -eu
runs=$1
share=${2:-1}
if [ -z "${PHOTOS:-}" ]; then
    PHOTOS=$runs/photos
    [ -e "$PHOTOS/MANIFEST.tsv" ] || python -m dossr_jax.data.photos "$PHOTOS"
fi
python -m dossr_jax.data.prepare "$PHOTOS" "$runs/data" --tile 256 --halve 'erase_*'
train() { # config steps [init]
    steps=$(awk "BEGIN {n = int($2 * $share); print n > 2 ? n : 2}")
    python train.py --config "mini_$1" --data "$runs/data" --output "$runs/$1" --steps "$steps" \
        ${3:+--init "$runs/$3/model.safetensors"} --export "$runs/dossr-mini.safetensors"
}
train vae 4000
train rrdb 8000 vae
train prior 12000 rrdb
train dossr 12000 prior
train decoder 4000 dossr
