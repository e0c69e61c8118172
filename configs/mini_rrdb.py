"""Pre-restorer of dossr-mini: L1 alone.

    python train.py --config mini_rrdb --data BANK --output RUN --init VAE_MODEL --minutes 17

Two cores of an AMD EPYC, shared with other work: 1729 steps in 17 minutes, validation PSNR
23.4 dB. On 40 held-out crops 23.1 dB where bicubic has 22.4 (preset realesrgan), 23.7 where it has
23.9 (light).
"""

from configs.mini import MODEL
from dossr_jax.config import TrainConfig, Window

CONFIG = TrainConfig(
    stage="rrdb",
    model=MODEL,
    windows=(Window(size=32, batch=16),),
    learning_rate=1e-3,
    ema_decay=0.99,
)
