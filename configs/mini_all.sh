#!/bin/sh
# dossr-mini from an empty folder: photos, data sets, six runs, the file that ships.
#   sh configs/mini_all.sh RUNS [SHARE]
# SHARE (default 1) scales the steps of every run: 0.01 is a trial of the whole recipe. Run again,
# it resumes where it was stopped. In the environment, PHOTOS names a folder of photos to use
# instead of fetching them, and COMPARE=1 asks for the ControlNet that starts from noise as well.
set -eu
runs=$1
share=${2:-1}
# Without an accelerator JAX sees one device; two, as batches of 4 and 8 allow, keep two cores busy.
export JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-2}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$runs/programs}"
if [ -z "${PHOTOS:-}" ]; then
    PHOTOS=$runs/photos
    [ -e "$PHOTOS/MANIFEST.tsv" ] || python -m dossr_jax.data.photos "$PHOTOS"
fi
scaled() { awk "BEGIN {n = int($1 * $share); print (n > $2 ? n : $2)}"; }
train() { # config, steps, data set, more options
    name=$1 steps=$(scaled "$2" 2) data=$runs/$3
    shift 3
    python train.py --config "mini_$name" --data "$data" --output "$runs/$name" \
        --steps "$steps" "$@"
}
python -m dossr_jax.data.prepare "$PHOTOS" "$runs/data" --tile 256 --halve 'erase_*'
train vae 300 data
train rrdb_adversarial 420 data --init "$runs/vae/model.safetensors"
train rrdb_clean 750 data --init "$runs/rrdb_adversarial/model.safetensors"
python -m dossr_jax.data.prepare "$PHOTOS" "$runs/pairs" --tile 128 --halve 'erase_*' \
    --degrade realesrgan light bicubic --pre-restore "$runs/rrdb_clean/model.safetensors" \
    --limit "$(scaled 1600 16)"
train prior 800 data --init "$runs/rrdb_clean/model.safetensors"
[ -z "${COMPARE:-}" ] || train noise 700 pairs --init "$runs/prior/model.safetensors"
train dossr 700 pairs --init "$runs/prior/model.safetensors"
train adversarial 700 pairs --init "$runs/dossr/model.safetensors" \
    --export "$runs/dossr-mini.safetensors" --export-sampler fidelity=0.8
