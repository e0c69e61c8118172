"""Sizes in pixels, and a level, that programs on the device and code on the host share."""

# What systems that enlarge do; another scale is resampled from that.
UPSCALE = 4
# Side of the areas whose mean colours stay, in pixels of the result; see dossr_jax.area_means.
AREA = 64
# Level in [0, 1] of pixels that are missing, in all channels.
FILLED = 128 / 255
