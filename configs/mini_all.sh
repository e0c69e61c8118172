#!/bin/sh
# dossr-mini from an empty folder: photos, bank, five runs, the file that ships.
#   sh configs/mini_all.sh RUNS [MINUTES]
# MINUTES (default 70) is the training time in all; photos and bank take 3 minutes more.
set -eu
runs=$1
minutes=${2:-70}
part() { awk "BEGIN {print $minutes * $1 / 100}"; }
train() { # config share-of-time [init]
    python train.py --config "mini_$1" --data "$runs/bank" --output "$runs/$1" \
        --minutes "$(part "$2")" ${3:+--init "$runs/$3/model.safetensors"} \
        --export "$runs/dossr-mini.safetensors"
}
python -m dossr_jax.data.photos "$runs/photos"
python -m dossr_jax.data.bank "$runs/photos" "$runs/bank"
train vae 17
train rrdb 24 vae
train prior 18 rrdb
train dossr 25 prior
train decoder 16 dossr
