#!/bin/sh
# dossr-mini from an empty folder: photos, data set, five runs, the file that ships.
#   sh configs/mini_all.sh RUNS [SHARE]
# SHARE (default 1) scales the steps of every run: 0.001 is a trial of the whole recipe. Run again,
# it resumes where it was stopped. In the environment, PHOTOS names a folder of photos to use
# instead of fetching them, and COMPARE=1 asks for the ControlNet that starts from noise as well.
set -eu
runs=$1
share=${2:-1}
# Without an accelerator JAX sees one device; two, as batches of 8 and 16 allow, keep two cores busy.
export JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-2}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$runs/programs}"
if [ -z "${PHOTOS:-}" ]; then
    PHOTOS=$runs/photos
    [ -e "$PHOTOS/MANIFEST.tsv" ] || python -m dossr_jax.data.photos "$PHOTOS"
fi
python -m dossr_jax.data.prepare "$PHOTOS" "$runs/data" --tile 256 --halve 'erase_*'
train() { # config, steps, more options
    name=$1 steps=$(awk "BEGIN {n = int($2 * $share); print (n > 2 ? n : 2)}")
    shift 2
    python train.py --config "mini_$name" --data "$runs/data" --output "$runs/$name" \
        --steps "$steps" "$@"
}
train vae 4000
train rrdb 8000 --init "$runs/vae/model.safetensors"
train prior 12000 --init "$runs/rrdb/model.safetensors"
[ -z "${COMPARE:-}" ] || train noise 12000 --init "$runs/prior/model.safetensors"
train dossr 12000 --init "$runs/prior/model.safetensors"
train refiner 3000 --init "$runs/dossr/model.safetensors" --export "$runs/dossr-mini.safetensors"
