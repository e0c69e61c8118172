"""Sizes in pixels that programs on the device and code on the host share."""

# Every system enlarges four times; another scale is resampled from that.
UPSCALE = 4
# Side of the areas whose mean colours stay, in pixels of the input; see dossr_jax.area_means.
AREA = 16
