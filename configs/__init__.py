"""Experiments by name: each module holds one typed CONFIG; its docstring says what to expect."""

from configs import (
    mini_dossr,
    mini_noise,
    mini_prior,
    mini_refiner,
    mini_rrdb,
    mini_vae,
    sd21_dossr,
    sd21_dossr_8gpu,
    sd21_dossr_v5e256,
    sd21_dossr_v5p64,
    sd21_dossr_v6e256,
    sd21_onestep,
    tiny,
)

MODULES = (
    tiny,
    mini_vae,
    mini_rrdb,
    mini_prior,
    mini_dossr,
    mini_refiner,
    mini_noise,
    sd21_dossr,
    sd21_onestep,
    sd21_dossr_8gpu,
    sd21_dossr_v5e256,
    sd21_dossr_v6e256,
    sd21_dossr_v5p64,
)
CONFIGS = {module.__name__.removeprefix("configs."): module.CONFIG for module in MODULES}
