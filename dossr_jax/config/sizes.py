"""Sizes in pixels that programs on the device and code on the host share."""

# What systems that enlarge do; another scale is resampled from that.
UPSCALE = 4
# Side of the areas whose mean colours stay, in pixels of the result; see dossr_jax.area_means.
AREA = 64
