"""A page in the browser that restores photos: `python -m dossr_jax.web`, with the extra `web`.

limits, turns (who is served when), restoring (what a request asks for, picture by picture) and
viewing (what browsers show) know nothing of Gradio; page, handlers and server are made of it.
"""
