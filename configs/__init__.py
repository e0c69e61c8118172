"""Experiments by name: each module holds one typed CONFIG; its docstring says what to expect."""

from configs import mini_decoder, mini_dossr, mini_prior, mini_rrdb, mini_vae

CONFIGS = {
    "mini_rrdb": mini_rrdb.CONFIG,
    "mini_vae": mini_vae.CONFIG,
    "mini_prior": mini_prior.CONFIG,
    "mini_dossr": mini_dossr.CONFIG,
    "mini_decoder": mini_decoder.CONFIG,
}
