"""Make torch_rmsprop.json: four steps of torch's RMSprop under clipping and warm-up, in float64 (torch 2.13.0, CPU)."""

import json
import pathlib

import torch

GRADIENTS = [[0.3, -1e-9, -30.0], [0.6, -1e-9, -10.0], [0.9, -1e-9, 10.0], [1.2, -1e-9, 30.0]]
LR, CLIP, WARMUP, INIT = 1e-3, 10.0, 150, [1.0, -2.0, 0.5]

w = torch.nn.Parameter(torch.tensor(INIT, dtype=torch.float64))
optimizer = torch.optim.RMSprop([w], lr=LR)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (WARMUP + 1)))
trace = []
for step, gradient in enumerate(GRADIENTS):
    w.grad = torch.tensor(gradient, dtype=torch.float64)
    norm = torch.nn.utils.clip_grad_norm_([w], CLIP)
    line = {"step": step, "raw_grad": gradient, "grad_norm": norm.item(), "clipped": w.grad.tolist()}
    line["lr"] = scheduler.get_last_lr()[0]
    optimizer.step()
    scheduler.step()
    trace.append(line | {"param": w.tolist()})

origin = f"torch {torch.__version__}: RMSprop and clip_grad_norm_ defaults, LambdaLR; made by torch_rmsprop.py"
golden = {"origin": origin, "lr": LR, "clip_norm": CLIP, "warmup_steps": WARMUP, "init": INIT, "trace": trace}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(golden, indent=1) + "\n")
